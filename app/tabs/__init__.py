"""One file per tab: it lays out and wires."""
