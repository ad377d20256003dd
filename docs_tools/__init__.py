"""What keeps docs/ true: its pages read, its commands run, its command reference made."""
