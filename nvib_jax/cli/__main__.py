"""`python -m nvib_jax.cli`: the `nvib` command."""

from nvib_jax.cli import main

raise SystemExit(main())
