"""Documentation. A package, so that `python -m docs.course.claims` finds this folder and no other `docs`."""
