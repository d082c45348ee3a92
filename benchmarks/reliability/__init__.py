"""How a run survives: kills, damage, full disks, moved folders, other machines, large inputs, long runs.

A module per kind of case: `kills`, `damage`, `disks`, `elsewhere`, `sizes`. A case takes an empty folder and returns
figures; `__main__` tries them and prints the table. `runs` makes the runs that all of them start from.
"""
