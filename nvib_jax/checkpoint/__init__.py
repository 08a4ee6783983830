"""A model in files: checkpoints of a run, exported models, and what makes sure of them.

description.py   all of a model but its parameters, as JSON values
store.py         writing checkpoints, with Orbax
reading.py       reading them
retention.py     which there are, and which stay
integrity.py     what was saved is what comes back
compatible.py    whether one is of the model, the run and the data it is read for
exported.py      safetensors and JSON
load.py          a folder that holds any of these -> the model
"""
