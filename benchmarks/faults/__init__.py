"""Faults made on purpose: kills, full disks, damaged files, hostile input, lost hosts. Each module is a command."""
