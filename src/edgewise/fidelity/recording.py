"""Write a simulated episode as the files of a live run."""

from __future__ import annotations

from pathlib import Path

from edgewise.domain import Command, Decision, PayloadForm, ShedReason
from edgewise.errors import MissingExtra
from edgewise.score import ScoreShape, score
from edgewise.sim.results import candidates
from edgewise.sim.simulate import Episode

try:
    from edgewise.live import records
    from edgewise.live.recorder import Recorder
except ImportError as error:
    raise MissingExtra("live", error.name or "pyarrow") from None


def record_episode(out: Path, episode: Episode) -> None:
    """Write the files of `edgewise up` into the folder `out`.

    Includes reports if the episode kept them (`SimOptions.keep_reports`). Raises BadInput if the
    folder cannot be made.
    """
    shape = ScoreShape.of(episode.scenario.score)
    of_row = candidates(episode.services)
    tables = [records.REQUESTS, records.OUTCOMES, records.DECISIONS, records.REPORTS]
    with Recorder(out, tables, patient=True) as recorder:
        if episode.sim.world.settings["keep_reports"][0]:
            for report, received in episode.reports():
                recorder.add(records.REPORTS, report, received, 0.0)
        results = episode.sim.world.results
        for request, outcome, result in zip(
            episode.requests(), episode.outcomes(), results, strict=True
        ):
            recorder.add(records.REQUESTS, request, None, outcome.label)
            recorder.add(records.OUTCOMES, outcome, score(request, outcome, shape))
            if result["row"] < 0:  # never decided
                continue
            picked = of_row[result["row"]]
            decision = Decision(
                request=request.id,
                ranked=() if picked is None else (picked,),
                rows=(int(result["row"]),),
                probability=float(result["probability"]),
                policy=episode.policy,
                at=float(result["decided_at"]),
                reason=ShedReason(outcome.reason) if picked is None and outcome.reason else None,
            )
            command = Command(
                request=request.id,
                sequence=int(result["command"]),
                dispatch=int(result["dispatch"]),
                server=picked.server if picked else None,
                model=picked.model if picked else None,
                form=picked.form if picked else PayloadForm.ORIGINAL,
            )
            predicted = None if picked is None else float(result["predicted"])
            recorder.add(records.DECISIONS, request, decision, command, "metadata", predicted)
