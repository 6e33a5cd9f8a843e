"""Other libraries' tools beside ours, in one run; see README.md in this folder."""
