"""Who a process is, who may call it, and how certificates are made (`docs/security.md`)."""
