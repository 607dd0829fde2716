"""The backend that a configuration is for."""

from __future__ import annotations

from edgewise.network.emulated_network import EmulatedNetwork
from edgewise.network.kernel.devices import DevicesConfig
from edgewise.network.relay.config import RelayConfig
from edgewise.network.relay.relay import Relay


def make_network(config: RelayConfig | DevicesConfig) -> EmulatedNetwork:
    """A relay, or a network of devices. Raises BadInput if the configuration is wrong."""
    if isinstance(config, RelayConfig):
        return Relay(config)
    # Imported here, for it needs an extra that the relay does not.
    from edgewise.network.kernel.device_network import DeviceNetwork

    return DeviceNetwork(config)
