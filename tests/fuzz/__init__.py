"""The fuzzer: ``make fuzz`` mutates seeds, runs commands on them in processes of their own, and keeps what it finds."""
