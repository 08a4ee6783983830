"""Cases that `-m long` alone runs, because each repeats what a quick one of its file shows.

They do so at another size, for another kind, or as a whole run where the quick one looks at a part;
each takes seconds to compile, and together they would double the time of the README's test command.
CI runs them too. A pattern is a test's name, or one with its case in brackets; `*` is anything.
"""

CASES = {
    "test_attention.py": (
        "test_bfloat16_errs_at_most_twice_the_plain_formulation[[]published-*",
        "test_causal_is_the_mask_that_it_says[[]4-6-[pr]*",
        "test_implementations_agree[[]published-8-*",
        "test_implementations_agree[[]exact-[128]-*",
        "test_bfloat16_errs_at_most_twice_the_plain_formulation[[]simplified-*",
        "test_causal_is_the_mask_that_it_says[[]6-4-*",
    ),
    "test_rivals.py": (
        "test_every_parameter_but_the_priors_is_trained[[]VT[VP]*",
        "test_all_train_write_and_draw[[]VT[VS]]",
        "test_every_parameter_but_the_priors_is_trained[[]VTS*",
        "test_their_attention_is_plain[[]VTP*",
    ),
    "test_bench_suites.py": (
        "test_sampler_rows_and_the_saturated_gradient",
        "test_generate_rows_write_the_same_tokens",
        "test_the_plain_draw_is_a_draw_of_the_posterior",
        "test_the_plain_loss_is_the_library_s",
    ),
    "test_contexts.py": (
        "test_outside_of_jit_on_explicit_axes*",
        "test_on_a_mesh[[]*-auto]",
    ),
    "test_cross_entropy.py": (
        "test_parts_equal_the_whole_in_value_and_gradient[[]*-11]",
        "test_parts_equal_the_whole_in_value_and_gradient[[]True-[46]]",
    ),
    "test_damage.py": (
        "test_a_full_disk*",
        "test_a_folder_that_vanishes",
        "test_bad_meta_data_of_one_do_not_block_the_others[[]list-[!m]*",
        "test_bad_meta_data_of_one_do_not_block_the_others[[]deep-[!p]*",
        "test_bad_meta_data_of_one_do_not_block_the_others[[]0xff-[!_]*",
    ),
    "test_evaluation.py": ("test_a_single_sentence_has_a_summary",),
    "test_guards.py": ("test_a_bad_step_may_be_skipped",),
    "test_kl.py": (
        "test_exact_against_mpmath[[]7*",
        "test_exact_against_mpmath[[]2-1]",
        "test_expected_count_against_mpmath[[]5]",
        "test_expected_count_against_mpmath[[]64]",
        "test_a_prior_is_a_constant_unless_it_is_to_be_trained[[]True]",
        "test_exact_against_mpmath[[]6*",
    ),
    "test_language_model.py": (
        "test_no_model_beats_the_source",
        "test_it_learns_the_shares_of_sentences_of_every_length",
    ),
    "test_likelihood.py": (
        "test_the_bound_rises_to_the_likelihood_of_a_linear_gaussian_decoder[[]0.3]",
        "test_one_draw_of_many_is_the_elbo",
    ),
    "test_loop.py": (
        "test_ctrl_c_keeps_a_checkpoint_and_says_how_to_go_on",
        "test_training_beats_no_training",
    ),
    "test_mesh.py": ("test_the_state_is_made_in_parts_and_stays_so",),
    "test_nvae.py": (
        "test_every_parameter_but_the_priors_has_a_gradient[[]options1]",
        "test_cached_steps_give_the_teacher_forced_logits[[]pre-1-True]",
        "test_cached_steps_give_the_teacher_forced_logits[[]post-1-False]",
    ),
    "test_pallas_gpu.py": (
        "test_the_kernel_errs_at_most_twice_what_plain_bfloat16_does[[]published-size[12]]",
        "test_the_folded_product_is_the_primitive",
        "test_the_gradient_is_that_of_xla",
        "test_causal[[]size1]",
    ),
    "test_pallas_tpu.py": (
        "test_errors_are_at_most_twice_those_of_plain_xla[[]tpu-impulse-*",
        "test_errors_are_at_most_twice_those_of_plain_xla[[]interpreter-exact-131-*",
        "test_errors_are_at_most_twice_those_of_plain_xla[[]tpu-published-*",
        "test_errors_are_at_most_twice_those_of_plain_xla[[]interpreter-published-*",
        "test_errors_are_at_most_twice_those_of_plain_xla[[]interpreter-impulse-*",
    ),
    "test_loss.py": (
        "test_noise_is_for_training_only",
        "test_alpha_delta_goes_from_one_value_to_another",
    ),
    "test_promotion.py": ("test_models_convert_nothing_silently[[]*",),
    "test_step.py": ("test_the_prior_and_vectors_are_left_alone_by_decay[[]*adam]",),
    "test_survival.py": ("test_processes_train_as_one[[]2-1-*",),
    "test_transforms.py": (
        "test_transforms[[]log_density_ratio]",
        "test_transforms[[]kl_* exact]",
        "test_transforms[[]sample_prior]",
        "test_transforms[[]geometric]",
        "test_transforms[[]attention expected_logit]",
        "test_transforms[[]attention reference]",
    ),
    "test_beam.py": (
        "test_search_is_the_plain_one[[]2-*",
        "test_search_is_the_plain_one[[]3-*",
    ),
    "test_parity.py": (
        "test_recorded_attention[[]*train-[12]]",
        "test_golden_kl_dirichlet[[]0.5-*",
        "test_golden_kl_dirichlet[[]5-*",
        "test_golden_kl_dirichlet[[]1000-*",
        "test_recorded_layer[[]layer-[12]]",
    ),
    "test_memory.py": ("test_running_out_is_one_sentence[[]error1]",),
    "test_text_model.py": ("test_interpolation_begins_and_ends_at_the_ends[[]drawn]",),
}
