"""The models: the NVAE, its rivals, and what all of them share."""
