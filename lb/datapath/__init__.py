"""The kernel side: maps and their layouts, the loader, hooks, reconciliation and dumps."""
