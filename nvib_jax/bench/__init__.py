"""`nvib bench`: this library's time and memory, compared with plain versions in the same run.

`attention`, `train`, `generate`, `sampler`, `scaling` and `data` define the cases, and `plain` has
what they are compared with. `timing` times them in turns, `report` prints and writes rows, `tables`
makes Markdown.
"""
