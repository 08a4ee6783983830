"""The table of priors: means and deviations over models, and what a row does not have."""

from nvib_jax.bench.priors import markdown


def test_the_table_of_priors():
    rows = [
        {"prior": "standard", "in_language": 0.5, "elbo_token": -10.0, "words": 7.0},
        {"prior": "flow", "in_language": 0.25, "words": 9.0},
        {"prior": "standard", "in_language": 0.7, "elbo_token": -10.5, "words": 7.5},
    ]
    head, rule, standard, flow = markdown(rows).splitlines()
    assert head.startswith("|  | models | in language % |")
    assert rule.count("|") == head.count("|") == 6  # what no row has is no column
    assert standard.startswith("| standard | 2 | 60.0 ± 14.1 | 7.2 ± 0.4 |")
    assert standard.endswith("| -10.2 ± 0.4 |")
    assert flow.startswith("| flow | 1 | 25.0 | 9.0 |")
    assert flow.endswith("| - |")
