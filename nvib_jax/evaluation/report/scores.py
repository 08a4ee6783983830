"""A short explanation of every score in `evaluation.json`, in the page's groups and order.

A score that is not listed is shown under "Others" by its name alone; a test checks that `nvib
evaluate` writes none of those.
"""

import re

# name -> (explanation, factor); the factor of a share is 100, because it is shown in per cent.
_Group = dict[str, tuple[str, float]]

GROUPS: tuple[tuple[str, _Group], ...] = (
    (
        "What comes back, read without noise",
        {
            "exact": ("sentences that are the same, letter by letter, %", 100),
            "bleu": ("BLEU, 0 to 100 (sacrebleu)", 1),
            "chrf": ("chrF, the same by characters, 0 to 100", 1),
            "token_accuracy": ("words that are right at their place, %", 100),
            "word_error_rate": ("words to change, add or drop, % of the source's", 100),
            "empty": ("sentences that come back without a word, %", 100),
            "beam_exact": ("sentences that are the same, by beam search, %", 100),
            "beam_bleu": ("BLEU by beam search", 1),
        },
    ),
    (
        "Vectors",
        {
            "kept_hard": ("tokens whose vector has a pseudo-count above the threshold, %", 100),
            "kept_soft": ("vectors that attention reads, effective number, % of all", 100),
            "growth": ("exponent of vectors against length; 1 is a constant share", 1),
            "choice_position": ("R2 of which are kept, explained by the position alone", 1),
            "choice_position_and_length": ("by the position and the sentence's length", 1),
            "choice_word": ("by the word", 1),
            "choice_class": ("by the word's class in the grammar", 1),
            "choice_surprisal": ("by tenths of the word's surprisal under a language model", 1),
            "choice_information": ("correlation of their number with -log p, equal length", 1),
            "pseudo_count": ("pseudo-count of a vector that is there, mean", 1),
            "kl_per_vector": ("KL of a vector's Gaussian to the prior, nats", 1),
            "active_dimensions": ("dimensions whose means differ between vectors", 1),
            "passive_dimensions": ("dimensions whose means do not (variance below .01)", 1),
            "mutual_information": ("how well a draw tells its sentence from the others, nats", 1),
            "mutual_information_most": ("what it would be if it always told, nats", 1),
        },
    ),
    (
        "Bounds on the log-probability of a sentence",
        {
            "elbo_sentence": ("ELBO, nats a sentence", 1),
            "elbo_token": ("ELBO, nats a token", 1),
            "perplexity": ("exp(-ELBO a token): perplexity is at most this", 1),
            "log_likelihood": ("of the ELBO: the text given one draw, nats a sentence", 1),
            "reconstruction_token": ("the same, nats a token", 1),
            "kl_gaussian": ("of the ELBO: KL of the Gaussians, nats a sentence", 1),
            "kl_dirichlet": ("of the ELBO: KL of the weights, nats a sentence", 1),
            "kl_codes": ("of the ELBO: KL of the codes, nats a sentence", 1),
            "log_prob_count": ("of the ELBO: log p(number of vectors), nats a sentence", 1),
            "iwae_sentence": ("importance-weighted bound, most draws, nats a sentence", 1),
            "iwae_token": ("importance-weighted bound, most draws, nats a token", 1),
            "source_sentence": ("true log-probability under the grammar, nats a sentence", 1),
            "gap_sentence": ("how far the tightest bound is below it, nats a sentence", 1),
        },
    ),
    (
        "Samples of the prior",
        {
            "in_language": ("sentences of the language, by its parser, %", 100),
            "log_prob": ("log-probability of those under the grammar, nats", 1),
            "distinct": ("different sentences among the samples, % of them", 100),
            "data_perplexity": ("perplexity of the data under the language model", 1),
            "sample_forward_perplexity": ("perplexity of the samples under it", 1),
            "sample_reverse_perplexity": ("perplexity of the data under one of samples", 1),
            "sample_distinct_1": ("words that are different words, %", 100),
            "sample_distinct_2": ("pairs of words that are different pairs, %", 100),
            "sample_self_bleu": ("BLEU of a sample against the others; high is alike", 1),
            "sample_memorised": ("samples that are training sentences, %", 100),
            "sample_nearest": ("likeness to the nearest training sentence, %", 100),
            "sample_words": ("words in a sample, mean", 1),
            "sample_empty": ("samples without a word, %", 100),
        },
    ),
    (
        "Samples and bound of the learned prior",
        {
            "learned_in_language": ("sentences of the language, by its parser, %", 100),
            "learned_log_prob": ("log-probability of those under the grammar, nats", 1),
            "learned_distinct": ("different sentences among the samples, % of them", 100),
            "learned_sample_forward_perplexity": ("perplexity of the samples, as above", 1),
            "learned_sample_reverse_perplexity": ("perplexity of the data under one of samples", 1),
            "learned_sample_distinct_1": ("words that are different words, %", 100),
            "learned_sample_distinct_2": ("pairs of words that are different pairs, %", 100),
            "learned_sample_self_bleu": ("BLEU of a sample against the others", 1),
            "learned_sample_memorised": ("samples that are training sentences, %", 100),
            "learned_sample_nearest": ("likeness to the nearest training sentence, %", 100),
            "learned_sample_words": ("words in a sample, mean", 1),
            "learned_sample_empty": ("samples without a word, %", 100),
            "learned_elbo_sentence": ("ELBO with the learned prior, nats a sentence", 1),
            "learned_elbo_token": ("the same, nats a token", 1),
            "learned_log_likelihood": ("of it: the text given its blurred points, nats", 1),
            "learned_kl": ("of it: what the blurred points cost under the prior, nats", 1),
            "learned_log_prob_count": ("of it: log p(number of vectors), nats", 1),
        },
    ),
    (
        "Half way between two sentences",
        {
            "interpolation_bleu_a": ("BLEU to the first", 1),
            "interpolation_bleu_b": ("BLEU to the second", 1),
            "interpolation_in_language": ("sentences of the language, %", 100),
            "interpolation_new": ("sentences that are neither end's nor in training, %", 100),
            "interpolation_perplexity_new": ("perplexity of the new ones", 1),
            "interpolation_bleu_ends": ("BLEU of the ends to their sources", 1),
            "interpolation_constant": ("ways on which nothing changes, %", 100),
            "interpolation_distinct_points": ("different sentences on a way, mean", 1),
            "interpolation_largest_step": ("largest step's share of a way, %", 100),
            "interpolation_detour": ("length of a way over that from end to end", 1),
        },
    ),
)
_PHRASES = {name: known for _, group in GROUPS for name, known in group.items()}
_DRAWS = re.compile(r"iwae_(\d+)_(sentence|token)")
# Names that count: a pattern, and what its groups are told in, with the factor. These are of models
# with NVIB in their layers, and stand under a heading of their own.
LAYERS = "NVIB in the layers, and what noise does"
_COUNTED: tuple[tuple[str, str, float], ...] = (
    (r"nats", "cross-entropy without noise, nats a token", 1),
    (r"kl_(gaussian|dirichlet)/(\d+)", "KL ({0}) of NVIB layer {1}, nats a sentence", 1),
    (r"kept_(\d+)", "vectors of NVIB layer {0} above the threshold, %", 100),
    (r"effective_(\d+)", "those that attention of layer {0} reads, effective number, %", 100),
    (r"noise_chrf_(\d+)", "chrF with noise in {0} % of the characters", 1),
    (r"noise_nats_(\d+)", "cross-entropy with noise in {0} % of the characters, nats", 1),
    (
        r"(segments|fixed|random)_(boundary|word)_(precision|recall|f1)",
        "{0}: {2} by {1}, %",
        100,
    ),
    (r"segments_per_word", "segments for each word", 1),
    (r"segments_prior", "characters that read the prior most, %", 100),
    (r"probe_(\w+)", "linear probe: {0}, %", 100),
)


def explained(name: str) -> tuple[str, float] | None:
    """(explanation, factor) of a score; None if it is not listed.

    >>> explained("iwae_10_token")
    ('importance-weighted bound, 10 draws, nats a token', 1.0)
    """
    if found := _DRAWS.fullmatch(name):
        draws = "1 draw" if found[1] == "1" else f"{found[1]} draws"
        return f"importance-weighted bound, {draws}, nats a {found[2]}", 1.0
    return _PHRASES.get(name) or _of_layers(name)


def _of_layers(name: str) -> tuple[str, float] | None:
    for pattern, phrase, factor in _COUNTED:
        if found := re.fullmatch(pattern, name):
            return phrase.format(*found.groups()), factor
    return None


def grouped(names: list[str]) -> list[tuple[str, list[str]]]:
    """Names under the headings of `GROUPS`, in their order, and those left over last.

    Standard errors are left out, because they are shown with their scores. The bound with the most
    draws is listed only under its name with a number.
    """
    errors = {name for name in names if name.removesuffix("_error") in set(names) - {name}}
    left = [name for name in names if name not in errors]
    counted = {found[2] for name in left if (found := _DRAWS.fullmatch(name))}
    left = [name for name in left if name not in {f"iwae_{each}" for each in counted}]
    groups = []
    for heading, group in GROUPS:
        here = [name for name in group if name in left]
        here += [n for n in left if _DRAWS.fullmatch(n) and "elbo_token" in group]
        groups += [(heading, here)] if here else []
    if here := [name for name in left if name not in _PHRASES and _of_layers(name)]:
        groups += [(LAYERS, here)]
    known = {name for _, here in groups for name in here}
    others = [name for name in left if name not in known]
    return groups + ([("Others", others)] if others else [])
