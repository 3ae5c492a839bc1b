"""The mutants: each a small change that makes training wrong, and the tests that must notice.

`old` must occur exactly once in `file`: when the code moves on, the harness says so, and the mutant moves with it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One way to break the code."""

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]
    """pytest arguments; at least one test among them must fail."""


def plain_loop(case: str) -> str:
    """The whole training that is held to a plain loop in float64."""
    return f"tests/whole/test_mathematics.py::test_a_training_equals_a_plain_loop_in_float64[{case}]"


WEIGHTED_TRAINING = "tests/hf/test_weights.py::test_a_weighted_training_is_a_plain_loop_with_weighted_means"

ENGINE, DATA, OPTIM, RUN, TRAINER = (f"src/sartor/{room}" for room in ("engine", "data", "optim", "run", "trainer"))

WEIGHTING = (
    Mutant(
        "mean of means",
        f"{RUN}/stepper.py",
        "                batch_targets=self._total_weight,",
        "                batch_targets=micro.num_targets\n"
        "                * sum(1 for _ in keyed_micro_batches(self._engine, self._batch.examples, self._batch.keys)),",
        (plain_loop("cut"),),
    ),
    Mutant(
        "tokens weighed instead of targets",
        f"{RUN}/stepper.py",
        "self._total_weight = batch.total_weight",
        "self._total_weight = batch.num_tokens",
        (plain_loop("whole"),),
    ),
    Mutant(
        "a first token counted as target",
        "src/sartor/records.py",
        "    is_target[starts_D[lengths_D > 0]] = False",
        "    pass",
        ("tests/run/test_stepper.py::test_targets_are_labels_that_something_predicts",),
    ),
    Mutant(
        "evaluation weighed by batches",
        f"{RUN}/evaluate.py",
        "sums = self._engine.measure(micro)",
        "sums = self._engine.measure(micro)\n"
        "            n = sums.num_targets\n"
        "            sums = LossSums(sums.loss_sum / n, sums.entropy_sum / n, sums.num_correct / n, 1)",
        ("tests/hf/test_evaluation.py::test_the_loss_does_not_depend_on_cut_and_packing",),
    ),
    Mutant(
        "num_tokens counts padding",
        f"{RUN}/loop.py",
        "return sum(len(example.input_ids) for example in self.examples)",
        "return len(self.examples) * max(len(example.input_ids) for example in self.examples)",
        (plain_loop("whole"),),
    ),
)

STEPPING = (
    Mutant(
        "optimizer step skipped",
        f"{RUN}/stepper.py",
        "            self._update.step()",
        "            pass",
        (plain_loop("whole"),),
    ),
    Mutant(
        "gradient not zeroed",
        f"{RUN}/stepper.py",
        "        self.discard()\n        return learning_rate",
        "        return learning_rate",
        (plain_loop("whole"),),
    ),
    Mutant(
        "schedule advanced before the rate is read",
        f"{RUN}/stepper.py",
        """        learning_rate = self._learning_rate()
        if not self._was_skipped and not self._steps_on_metrics:
            self._scheduler.step()
""",
        """        if not self._was_skipped and not self._steps_on_metrics:
            self._scheduler.step()
        learning_rate = self._learning_rate()
""",
        (plain_loop("whole"),),
    ),
    Mutant(
        "schedule not advanced",
        f"{RUN}/stepper.py",
        "            self._scheduler.step()",
        "            pass",
        (plain_loop("whole"),),
    ),
    Mutant(
        "clipping ignored",
        f"{ENGINE}/step.py",
        "        if max_norm > 0:",
        "        if max_norm > 1e9:",
        (plain_loop("clipped"),),
    ),
    Mutant(
        "loss scale not undone",
        f"{RUN}/stepper.py",
        "            self._scaler.unscale_(self._update)",
        "            pass",
        ("tests/whole/test_mathematics.py::test_float16_with_loss_scaling_measures_the_same_norms",),
    ),
    Mutant(
        "a step that overflowed is scheduled",
        f"{RUN}/stepper.py",
        "self._was_skipped = self._scaler.get_scale() < before",
        "self._was_skipped = False",
        ("tests/run/test_stepper.py::test_a_float16_step_that_overflows_is_skipped_and_the_scale_lowered",),
    ),
    Mutant(
        "a loss that is not finite goes on",
        f"{RUN}/stepper.py",
        "if not torch.isfinite(total.loss_sum):",
        "if False:",
        ("tests/whole/test_mathematics.py::test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows",),
    ),
    Mutant(
        "an interrupt in the middle of a step",
        f"{RUN}/interrupt.py",
        "        if self._is_held and self._pending is None and self._num_came() < 2:",
        "        if False:",
        ("tests/run/test_saving.py::test_ctrl_c_saves_whole_steps_and_is_raised_again",),
    ),
    Mutant(
        "last partial batch dropped",
        "src/sartor/batching/order.py",
        "    if drop_last and batches",
        "    if batches",
        (plain_loop("whole"),),
    ),
    Mutant(
        "last partial accumulation dropped",
        "src/sartor/batching/order.py",
        "for start in range(0, len(batches), accumulation)",
        "for start in range(0, len(batches) - accumulation + 1, accumulation)",
        ("tests/batching/test_order.py::test_batches_by_hand",),
    ),
    Mutant(
        "wrong row order",
        "src/sartor/batching/order.py",
        "manual_seed(seed + epoch)",
        "manual_seed(seed + epoch + 1)",
        ("tests/batching/test_order.py::test_random_order_equals_the_trainers",),
    ),
    Mutant(
        "the same order in every epoch",
        "src/sartor/batching/order.py",
        "manual_seed(seed + epoch)",
        "manual_seed(seed)",
        (plain_loop("whole"),),
    ),
)

ISOLATION = (
    Mutant(
        "documents leak into each other",
        f"{ENGINE}/step.py",
        "        self._micro = micro\n",
        '        if "document_lengths" in inputs:\n'
        '            inputs["document_lengths"] = (micro.num_tokens,)\n'
        "        self._micro = micro\n",
        (plain_loop("whole"),),
    ),
    Mutant(
        "documents leak in attention",
        f"{ENGINE}/attention.py",
        "lengths = list(document_lengths.tokens)",
        "lengths = [sum(document_lengths.tokens)]",
        ("tests/engine/test_attention.py::test_a_token_sees_its_document_up_to_itself_within_the_window",),
    ),
    Mutant(
        "the probe sees no leak",
        f"{ENGINE}/layout.py",
        "if _largest_difference(moved_TH[first:], found_TH[first:]) >",
        "if _largest_difference(found_TH[first:], found_TH[first:]) >",
        ("tests/engine/test_layout.py::test_probe_tells_leaks_and_wrong_results_from_right_ones",),
    ),
    Mutant(
        "the probe passes wrong results",
        f"{ENGINE}/layout.py",
        "if _difference(found_TH, torch.cat(list(truth))) > tolerance:",
        "if _difference(found_TH, found_TH) > tolerance:",
        ("tests/engine/test_layout.py::test_probe_rejects_an_own_attention_without_the_window",),
    ),
    Mutant(
        "packed documents become one",
        "src/sartor/batching/cut.py",
        "        lengths.extend(documents)",
        "        lengths.append(sum(documents))",
        ("tests/batching/test_cut.py::test_packed_blocks_are_their_documents",),
    ),
    Mutant(
        "the window of Mistral ignored",
        f"{ENGINE}/attention.py",
        "if sliding_window is not None and length > sliding_window:",
        "if sliding_window is not None and length > 1000 * sliding_window:",
        ("tests/engine/test_attention.py::test_a_token_sees_its_document_up_to_itself_within_the_window",),
    ),
    Mutant(
        "a window one token too long",
        f"{ENGINE}/attention.py",
        "(distance >= 0) & (distance < window)",
        "(distance >= 0) & (distance <= window)",
        (
            "tests/engine/test_attention.py::test_window_mask_by_hand",
            "tests/engine/test_layout.py::test_every_architecture_has_the_layout_that_is_written_down",
        ),
    ),
    Mutant(
        "the window missing in the explicit mask",
        f"{ENGINE}/layout.py",
        "sees_TT & (distance_TT < traits.sliding_window)",
        "sees_TT",
        ("tests/engine/test_layout.py::test_block_mask_by_hand",),
    ),
    Mutant(
        "attention implementation not restored",
        f"{ENGINE}/attention.py",
        "        model.set_attn_implementation(before)",
        "        pass",
        ("tests/engine/test_layout.py::test_generate_is_the_same_after_running[kept-llama]",),
    ),
    Mutant(
        "noise of the row instead of the document",
        f"{ENGINE}/noise.py",
        "        if layout is Layout.PADDED:",
        "        document_noise = document_noise * (length / embeddings.shape[1]) ** 0.5\n"
        "        if layout is Layout.PADDED:",
        ("tests/engine/test_noise.py::test_the_bound_is_that_of_the_documents_own_length",),
    ),
    Mutant(
        "the same noise in every step",
        f"{RUN}/stepper.py",
        "step=updater.steps.done,",
        "step=0,",
        ("tests/whole/test_mathematics.py::test_noise_is_drawn_anew_in_every_step",),
    ),
)

TARGETS = (
    Mutant(
        "targets shifted twice",
        "src/sartor/batching/cut.py",
        "targets_N = labels_T[target_rows_N + 1]",
        "targets_N = ids_T[(target_rows_N + 2) % ids_T.shape[0]]",
        (plain_loop("whole"),),
    ),
    Mutant(
        "the next document is the future",
        "src/sartor/records.py",
        "    is_target[starts_D[lengths_D > 0]] = False",
        "    is_target[:1] = False",
        ("tests/run/test_stepper.py::test_targets_are_labels_that_something_predicts",),
    ),
    Mutant(
        "a first token counted in the summary",
        f"{DATA}/encoding/table.py",
        "return target_flags(self.labels, lengths, self.weights)",
        "return np.asarray(self.labels != IGNORE_INDEX)",
        ("tests/data/test_target_counts.py",),
    ),
    Mutant(
        "EOS not appended",
        f"{DATA}/encoding/tokens.py",
        'return f"{prompt}{text}{self._tokenizer.eos_token}"',
        "return prompt + text",
        ("tests/data/test_encode.py::test_text_ends_with_the_end_of_text_token_once_and_all_of_it_is_trained",),
    ),
    Mutant(
        "EOS target lost",
        f"{DATA}/encoding/tokens.py",
        "        encoded = TokenRows.from_targets(ids, is_target)\n",
        "        encoded = TokenRows.from_targets(ids, is_target)\n"
        "        encoded.labels[encoded.input_ids == self._tokenizer.eos_token_id] = -100\n",
        ("tests/data/test_encode.py::test_text_ends_with_the_end_of_text_token_once_and_all_of_it_is_trained",),
    ),
    Mutant(
        "completion one token late",
        f"{DATA}/encoding/tokens.py",
        "is_target.append([0] * start + rest)",
        "is_target.append([0] * (start + 1) + rest[1:])",
        ("tests/data/test_encode.py::test_a_completion_starts_where_the_tokens_part",),
    ),
    Mutant(
        "the prompt is trained too",
        f"{DATA}/encoding/tokens.py",
        "self._completion_only = settings.completion_only_loss is not False",
        "self._completion_only = settings.completion_only_loss is True",
        ("tests/data/test_encode.py::test_only_completions_are_trained_and_the_prompt_is_when_asked",),
    ),
    Mutant(
        "truncation not counted",
        f"{DATA}/encoding/cutting.py",
        "num_truncated_targets=rows.num_targets - short.num_targets",
        "num_truncated_targets=0",
        ("tests/data/test_encode.py::test_truncation_is_counted_in_rows_tokens_and_targets",),
    ),
    Mutant(
        "padding is trained",
        f"{TRAINER}/examples.py",
        "labels_BL = torch.full((len(documents), length), IGNORE_INDEX, dtype=torch.int64)",
        "labels_BL = torch.full((len(documents), length), pad_token_id, dtype=torch.int64)",
        ("tests/hf/test_own_loss.py::test_the_padded_path_gives_the_gradients_of_the_flat_one",),
    ),
)

LOSS = (
    Mutant(
        "a row lost at each chunk's end",
        f"{ENGINE}/loss.py",
        "for start in form.pieces(targets_N.shape[0], chunk_rows)",
        "for start in form.pieces(targets_N.shape[0], chunk_rows + 1)",
        ("tests/engine/test_loss.py::test_sums_and_gradients_equal_the_plain_formula",),
    ),
    Mutant(
        "a row lost between parts of a chunk",
        f"{ENGINE}/loss.py",
        "rows = slice(start, start + rows_at_once)",
        "rows = slice(start, start + max(1, rows_at_once - 1))",
        ("tests/engine/test_loss_rows.py::test_the_number_of_rows_at_once_changes_nothing",),
    ),
    Mutant(
        "compiled layers look into the documents' lengths",
        f"{ENGINE}/attention.py",
        "if between_programs else",
        "if False else",
        ("tests/engine/test_compiled.py::test_other_lengths_and_other_numbers_of_documents_need_no_new_program",),
    ),
    Mutant(
        "longest examples last",
        "src/sartor/batching/cut.py",
        "rest.sort(key=lambda index: -lengths[index])",
        "rest.sort(key=lambda index: lengths[index])",
        ("tests/batching/test_cut.py",),
    ),
    Mutant(
        "who watches a model sees imagined passes",
        "src/sartor/memory/meta_model.py",
        "for name in compat.HOOKS if name in vars(module)",
        "for name in ()",
        ("tests/memory/test_meta_model.py",),
    ),
    Mutant(
        "label smoothing with the wrong sign",
        f"{ENGINE}/objectives.py",
        "gradient_NV.sub_((self.label_smoothing",
        "gradient_NV.add_((self.label_smoothing",
        (plain_loop("smoothed"),),
    ),
    Mutant(
        "label smoothing with the wrong share",
        f"{ENGINE}/objectives.py",
        "(1.0 - self.label_smoothing) * nll_N",
        "nll_N",
        ("tests/engine/test_objectives.py::test_loss_and_gradient_are_those_of_the_formula",),
    ),
    Mutant(
        "Dynamic Fine-Tuning's weight not held constant",
        f"{ENGINE}/objectives.py",
        "(-nll_N).exp().detach()",
        "(-nll_N).exp()",
        ("tests/engine/test_objectives.py::test_loss_and_gradient_are_those_of_the_formula",),
    ),
    Mutant(
        "soft-cap without its derivative",
        f"{ENGINE}/loss.py",
        "            z_CV.mul_(slope_CV)",
        "            pass",
        ("tests/engine/test_loss.py::test_sums_and_gradients_equal_the_plain_formula",),
    ),
    Mutant(
        "logit scale missing in the gradient",
        f"{ENGINE}/loss.py",
        "            z_CV.mul_(form.logit_scale)\n        if z_CV is not",
        "            pass\n        if z_CV is not",
        ("tests/engine/test_loss.py::test_sums_and_gradients_equal_the_plain_formula",),
    ),
    Mutant(
        "logit scale not read",
        f"{ENGINE}/traits.py",
        'return float(_first(config, "logit_scale", "lm_head_multiplier") or 1.0)',
        "return 1.0",
        ("tests/engine/test_step.py::test_head_check_passes_what_the_traits_know[cohere]",),
    ),
    Mutant(
        "the head's check passes everything",
        f"{ENGINE}/step.py",
        "        if not difference <= tolerance:",
        '        if difference == float("inf"):',
        ("tests/engine/test_step.py::test_head_check_refuses_logits_that_it_cannot_explain",),
    ),
    Mutant(
        "gradients of a tied head replaced",
        f"{ENGINE}/loss.py",
        "            if self.weight.grad is None:",
        "            if True:",
        ("tests/engine/test_loss.py::test_gradients_are_added_to_what_is_there",),
    ),
)

STATE = (
    Mutant(
        "bf16 on a GPU without it",
        "src/sartor/device.py",
        "if capability >= (8, 0):",
        "if capability >= (7, 0):",
        ("tests/test_device.py::test_a_gpus_fast_dtypes_follow_its_compute_capability",),
    ),
    Mutant(
        "the second processor's flags are read too",
        "src/sartor/device.py",
        'text.split("\\n\\n")[0].splitlines()',
        "text.splitlines()",
        ("tests/test_device.py::test_a_processors_fast_dtypes_are_read_off_its_flags",),
    ),
    Mutant(
        "bf16 on any processor",
        f"{ENGINE}/precision.py",
        "if bf16 and torch.bfloat16 in fast:",
        "if bf16:",
        ("tests/engine/test_precision.py::test_compute_dtype_follows_permission_and_device",),
    ),
    Mutant(
        "masters not widened",
        f"{ENGINE}/precision.py",
        "                parameter.data = parameter.data.float()\n            parameter.grad = None",
        "                pass\n            parameter.grad = None",
        ("tests/engine/test_precision.py::test_updates_smaller_than_a_bf16_step_add_up",),
    ),
    Mutant(
        "arrival dtype not given back",
        f"{ENGINE}/precision.py",
        "            parameter.data = parameter.data.to(dtype)\n",
        "",
        ("tests/whole/test_mathematics.py::test_models_are_handed_back_and_saved_in_the_dtype_they_arrived_in",),
    ),
    Mutant(
        "masters saved instead of the model",
        f"{TRAINER}/model_files.py",
        "arrival_dtype(parameters[name]) if name in parameters else tensor.dtype",
        "tensor.dtype",
        ("tests/whole/test_mathematics.py::test_models_are_handed_back_and_saved_in_the_dtype_they_arrived_in",),
    ),
    Mutant(
        "masters saved by transformers instead of the model",
        f"{TRAINER}/saving.py",
        "        with trainer.masters.rounded():",
        "        if True:",
        ("tests/run/test_model_files.py::test_a_checkpoint_that_only_transformers_can_write_is_gone_on_from",),
    ),
    Mutant(
        "checkpoint copied, not renamed",
        f"{RUN}/checkpoint.py",
        "    else:\n        os.replace(partial, target)",
        "    else:\n        shutil.copytree(partial, target)",
        ("tests/run/test_checkpoint.py::test_what_was_written_comes_back",),
    ),
    Mutant(
        "which checkpoint is older is a matter of a clock",
        f"{RUN}/checkpoint.py",
        "for path in sorted(runs, key=age) if path not in protected",
        "for path in sorted(runs, key=lambda path: path.stat().st_mtime_ns) if path not in protected",
        ("tests/run/test_checkpoint.py::test_the_newest_and_the_best_are_kept",),
    ),
    Mutant(
        "steps alone order checkpoints",
        f"{RUN}/checkpoint.py",
        "latest if run is None else run, step_of(path))",
        "0, step_of(path))",
        ("tests/run/test_checkpoint.py::test_newer_is_a_matter_of_runs_first",),
    ),
    Mutant(
        "a whole checkpoint that has no name yet is deleted",
        f"{RUN}/checkpoint.py",
        "            is_whole = _is_whole(path)",
        "            is_whole = False",
        ("tests/run/test_checkpoint.py::test_killed_at_any_system_call_what_is_whole_has_its_name_in_the_end",),
    ),
    Mutant(
        "what is replaced is deleted before the new one has its name",
        f"{RUN}/checkpoint.py",
        "        os.replace(target, replaced)\n",
        "        delete(target)\n        os.makedirs(replaced)\n",
        ("tests/run/test_checkpoint.py::test_a_rename_that_the_system_refuses_leaves_the_old_one_its_name",),
    ),
    Mutant(
        "half a checkpoint left",
        f"{TRAINER}/checkpoints.py",
        "            shutil.rmtree(partial, ignore_errors=True)\n            raise\n        best = ",
        "            raise\n        best = ",
        ("tests/run/test_saving.py::test_whatever_stops_a_save_leaves_no_part_of_it",),
    ),
    Mutant(
        "the secrets in the resolved configuration",
        "src/sartor/config/resolve.py",
        "settings: dict[str, Any] = masked(",
        "settings: dict[str, Any] = dict(",
        ("tests/test_config.py::test_the_written_configuration_is_json_without_tokens",),
    ),
    Mutant(
        "a push follows a link out of the run folder",
        "src/sartor/report/staging.py",
        "    return path.is_file() and path.resolve() == path and path.is_relative_to(root)",
        "    return path.is_file()",
        ("tests/report/test_staging.py::test_no_link_is_followed_out_of_a_run_folder",),
    ),
    Mutant(
        "a push takes what lies in the run folder",
        f"{TRAINER}/hub.py",
        "    made = saving.save_anew(trainer)",
        "    made = saving.save_anew(trainer) | staging.names_in(Path(args.output_dir))",
        ("tests/report/test_staging.py::TestTrainer::test_a_push_takes_what_this_run_has_written",),
    ),
    Mutant(
        "a push takes a subfolder with an adapter",
        "src/sartor/report/staging.py",
        "is_of_adapter = made is not None and f",
        "is_of_adapter = f",
        ("tests/report/test_staging.py::test_no_folder_with_an_adapter_is_taken_for_templates",),
    ),
    Mutant(
        "a link out of a model's folder",
        f"{TRAINER}/model_folder.py",
        "    return any(found.is_relative_to(home) for home in homes)",
        "    return True",
        ("tests/run/test_model_folder.py::test_nothing_outside_of_a_models_folder_reaches_the_run_folder_or_the_hub",),
    ),
    Mutant(
        "a nested secret unmasked",
        "src/sartor/masking.py",
        "else masked(part, is_secret)\n",
        "else part\n",
        (
            "tests/test_masking.py::test_settings_are_masked_however_deep",
            "tests/whole/test_secrets.py::test_no_file_and_no_output_of_a_run_shows_a_secret",
        ),
    ),
    Mutant(
        "another token is a difference on resume",
        "src/sartor/config/resumption.py",
        "and not same_but_for_secrets(before[name], value)",
        "and before[name] != value",
        ("tests/test_masking.py::test_a_token_that_one_run_has_and_the_other_lacks_changes_no_setting",),
    ),
    Mutant(
        "weights that their owner alone may read",
        "src/sartor/run/saving.py",
        "        share_weights(folder)\n",
        "        pass\n",
        ("tests/whole/test_permissions.py",),
    ),
    Mutant(
        "the token in an error",
        "src/sartor/report/hub.py",
        "        message = message.replace(secret, MASK)\n",
        "        pass\n",
        ("tests/report/test_hub.py::test_each_refusal_says_what_to_do_and_never_the_token",),
    ),
    Mutant(
        "requests to the Hub without a time-out",
        "src/sartor/report/transfer.py",
        '        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), timeout_s)\n',
        '        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), 60 * timeout_s)\n',
        ("tests/report/test_hub_standstill.py::test_opening_the_repository_at_construction_ends",),
    ),
    Mutant(
        "the Hub asked before the model is saved",
        f"{TRAINER}/hub.py",
        "    made = saving.save_anew(trainer)\n    trainer.callback_handler.on_push_begin(args, trainer.state, "
        "trainer.control)\n    if trainer.hub_model_id is None:\n"
        "        trainer.init_hf_repo(token=token, private=private)\n",
        "    if trainer.hub_model_id is None:\n        trainer.init_hf_repo(token=token, private=private)\n"
        "    made = saving.save_anew(trainer)\n",
        ("tests/report/test_hub_standstill.py::test_a_model_is_on_the_disk_before_its_repository_is_opened",),
    ),
    Mutant(
        "what fails after the last step takes the weights with it",
        f"{TRAINER}/training.py",
        "        except BaseException as error:\n            _keep_weights(trainer, train_loop, error)\n",
        "        except BaseException:\n",
        ("tests/run/test_rescue.py::test_whatever_fails_after_the_last_step_leaves_its_weights_and_is_raised",),
    ),
)

BEGINNINGS = (
    Mutant(
        "a turn that has looked ahead taken as it is",
        f"{DATA}/targets/provenance/order.py",
        "    if any(progress.reach[number] >= count for number in skipped):\n        return None\n",
        "",
        ("tests/data/test_order.py::test_nothing_is_told_where_an_earlier_turn_may_have_looked_ahead",),
    ),
    Mutant(
        "a loop that begins with other values taken as it is",
        f"{DATA}/targets/provenance/order.py",
        "of_part.values != progress.values or",
        "",
        ("tests/data/test_order.py::test_what_is_told_of_a_beginning_is_what_transformers_writes",),
    ),
    Mutant(
        "a loop whose turns leave something behind skips them",
        f"{DATA}/targets/provenance/order.py",
        " or _leaves_something(loop)",
        "",
        ("tests/data/test_order.py::test_nothing_is_told_where_an_earlier_turn_may_have_looked_ahead",),
    ),
    Mutant(
        "tokens that take spaces told by their lengths",
        f"{DATA}/encoding/layout.py",
        "            if end - base == num_bytes and (",
        "            if (",
        ("tests/data/test_layout.py::test_tokens_that_take_spaces_beside_them_are_told_by_offsets",),
    ),
    Mutant(
        "exchanged bytes told by their number",
        f"{DATA}/encoding/layout.py",
        "self._joined(row) == content",
        "True",
        ("tests/data/test_layout.py::test_a_text_whose_bytes_are_exchanged_for_as_many_others_is_not_told",),
    ),
)

PROOF = (
    Mutant(
        "end of turn dropped",
        f"{DATA}/targets/turn_tokens.py",
        "marks[start : end + 1] = [turn.message + 1] * (end + 1 - start)",
        "marks[start:end] = [turn.message + 1] * (end - start)",
        ("tests/data/test_assistant.py::test_the_exact_tokens_of_the_answers_are_trained",),
    ),
    Mutant(
        "header trained",
        f"{DATA}/targets/attempt.py",
        "            start = len(prompt)\n",
        "            start = span.start\n",
        ("tests/data/test_targets.py::test_each_kind_of_template_is_proven_or_refused",),
    ),
    Mutant(
        "a turn begins a token late",
        f"{DATA}/targets/turn_tokens.py",
        "        return token\n",
        "        return token + 1\n",
        ("tests/data/test_assistant.py::test_the_exact_tokens_of_the_answers_are_trained",),
    ),
    Mutant(
        "tokens before an answer not compared",
        f"{DATA}/targets/turn_tokens.py",
        "if ids[first:token] != head or (token",
        "if (token",
        ("tests/data/test_assistant.py::test_a_row_is_cut_where_the_whole_text_has_other_tokens_than_the_prompt",),
    ),
    Mutant(
        "an end of turn in a message trained",
        f"{DATA}/targets/prover.py",
        "        attempt.refuse_special_text()\n",
        "",
        ("tests/data/test_targets.py::test_a_message_that_holds_a_special_token_is_refused_by_its_number",),
    ),
    Mutant(
        "messages out of order trained",
        f"{DATA}/targets/attempt.py",
        "        self._refuse_moved(number, span)\n",
        "",
        ("tests/data/test_targets.py::test_each_kind_of_template_is_proven_or_refused",),
    ),
    Mutant(
        "a filter that loses tags trusted",
        f"{DATA}/targets/provenance/environment.py",
        '        "attr",\n',
        '        "attr",\n        "indent",\n',
        ("tests/data/test_provenance.py::test_what_is_made_of_a_content_is_tagged_so",),
    ),
    Mutant(
        "answers of the prompt trained",
        f"{DATA}/targets/assistant.py",
        "first = len(prompt) if self._completion_only else 0",
        "first = 0",
        ("tests/data/test_assistant.py::test_both_losses_train_the_answers_of_the_completion_alone",),
    ),
)

WEIGHTS = (
    Mutant(
        "weights ignored by the loss",
        f"{ENGINE}/loss.py",
        "loss_C, factor_C, weight_sum = loss_C * weights_C, factor_C * weights_C, weights_C.sum()",
        "weight_sum = weights_C.sum()",
        (WEIGHTED_TRAINING,),
    ),
    Mutant(
        "weights ignored by the gradient",
        f"{ENGINE}/loss.py",
        "loss_C, factor_C, weight_sum = loss_C * weights_C, factor_C * weights_C, weights_C.sum()",
        "loss_C, weight_sum = loss_C * weights_C, weights_C.sum()",
        (WEIGHTED_TRAINING,),
    ),
    Mutant(
        "a weighted sum divided by the number of targets",
        f"{RUN}/stepper.py",
        "self._total_weight = batch.total_weight",
        "self._total_weight = batch.num_targets",
        (WEIGHTED_TRAINING,),
    ),
    Mutant(
        "a weighted loss logged by the number of targets",
        "src/sartor/records.py",
        "(self.num_targets if self.weight_sum is None else float(self.weight_sum))",
        "self.num_targets",
        (WEIGHTED_TRAINING,),
    ),
    Mutant(
        "train: false ignored",
        f"{DATA}/targets/weights.py",
        'if message.get("train") is False:',
        "if False:",
        ("tests/data/test_weights.py::test_an_answer_of_weight_zero_is_no_target",),
    ),
    Mutant(
        "a message's first token weighed as the one before",
        f"{DATA}/targets/weights.py",
        'np.searchsorted(borders, np.arange(len(text)), "right")',
        'np.searchsorted(borders, np.arange(len(text)), "left")',
        ("tests/data/test_weights.py::test_every_token_weighs_what_its_message_does",),
    ),
    Mutant(
        "weights lost in packing",
        f"{DATA}/encoding/table.py",
        "documents, pieces.weights)",
        "documents)",
        ("tests/hf/test_weights.py::test_packed_rows_keep_their_weights",),
    ),
    Mutant(
        "a weight next to its token's",
        "src/sartor/batching/cut.py",
        "weights_T[target_rows_N + 1]",
        "weights_T[target_rows_N]",
        ("tests/engine/test_weights.py::test_a_token_that_weighs_nothing_is_no_target",),
    ),
)

TARGET_OPTIONS = (
    Mutant(
        "unrolled answers trained with those before",
        f"{DATA}/targets/unroll.py",
        "prompt=before + body[:number], body=[message]",
        "prompt=before, body=body[: number + 1]",
        ("tests/data/test_target_options.py::test_unrolled_answers_are_trained_as_the_template_writes_them_last",),
    ),
    Mutant(
        "an appended end not trained",
        f"{DATA}/targets/prover.py",
        "            end += len(turn.end_token)\n",
        "",
        ("tests/data/test_target_options.py::test_an_end_that_the_template_does_not_write_is_appended_when_asked",),
    ),
    Mutant(
        "a prompt that agrees in part taken unasked",
        f"{DATA}/targets/attempt.py",
        "if asked is Start.PROVEN or refusal.kind",
        "asked = Start.PARTIAL\n            if refusal.kind",
        ("tests/data/test_target_options.py::test_a_header_in_common_is_enough_when_asked",),
    ),
    Mutant(
        "a completion trained from within its prompt",
        f"{DATA}/encoding/tokens.py",
        "if ids[number][: len(prompt)] != prompt and",
        "if False and",
        ("tests/data/test_completion.py::test_a_prompt_that_is_rewritten_once_answers_follow_is_not_trained",),
    ),
    Mutant(
        "a turn begins a token early",
        f"{DATA}/targets/turn_tokens.py",
        "            marks[start : end + 1] = ",
        "            start -= 1\n            marks[start : end + 1] = ",
        ("tests/data/test_assistant.py::test_the_exact_tokens_of_the_answers_are_trained",),
    ),
    Mutant(
        "fields left out uncounted",
        f"{DATA}/targets/audit.py",
        "            if [part for part in parts if",
        "            if False and [part for part in parts if",
        ("tests/data/test_audit.py::test_fields_that_the_template_leaves_out_are_said_whatever_is_trained",),
    ),
    Mutant(
        "untrained ends unsaid",
        f"{DATA}/targets/audit.py",
        "np.flatnonzero((num_ends == 0) &",
        "np.flatnonzero((num_ends < 0) &",
        ("tests/data/test_audit.py::test_an_end_that_is_not_trained_is_said",),
    ),
    Mutant(
        "rows without targets dropped against the user's will",
        f"{DATA}/encoding/cutting.py",
        'if settings.no_targets == "error":',
        'if settings.no_targets == "never":',
        (
            "tests/data/test_audit.py::"
            "test_rows_that_max_length_leaves_without_targets_are_dropped_and_counted_or_an_error",
        ),
    ),
    Mutant(
        "special tokens in contents unsaid",
        f"{DATA}/targets/audit.py",
        "            if found:\n",
        "            if False:\n",
        ("tests/data/test_audit.py::test_special_tokens_in_a_rows_own_text_are_said_with_the_first_rows",),
    ),
    Mutant(
        "a doubled bos unsaid",
        f"{DATA}/targets/audit.py",
        "(encoded.input_ids[starts + 1] == bos)",
        "(encoded.input_ids[starts + 1] != bos)",
        ("tests/data/test_audit.py::test_a_doubled_bos_is_said",),
    ),
)

INSPECTION = (
    Mutant(
        "only what is named of a finding is counted",
        f"{DATA}/inspection/ledger.py",
        "        entry.count += 1",
        "        entry.count = min(entry.count + 1, KEPT)",
        ("tests/data/inspection/test_examine.py::test_all_are_counted_and_the_first_five_named",),
    ),
    Mutant(
        "the row that is repeated named instead of the repetition",
        f"{DATA}/inspection/judge.py",
        "        yield row(second), f",
        "        yield row(first), f",
        ("tests/data/inspection/test_examine.py::test_what_is_planted_is_found_in_its_row_and_nothing_else",),
    ),
    Mutant(
        "trained and untrained swapped on the page",
        f"{DATA}/inspection/page.py",
        '"b" if token.is_target and not token.is_cut else "i"',
        '"i" if token.is_target and not token.is_cut else "b"',
        ("tests/data/inspection/test_page.py::test_trained_tokens_are_b_and_others_i_and_each_tells_its_id",),
    ),
    Mutant(
        "trained and untrained swapped in the terminal",
        f"{DATA}/inspection/terminal.py",
        "TRAINED_MARKS if is_target else",
        "TRAINED_MARKS if not is_target else",
        ("tests/data/inspection/test_terminal.py::test_marks_enclose_exactly_what_is_trained",),
    ),
    Mutant(
        "rows not escaped on the page",
        f"{DATA}/inspection/page.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/data/inspection/test_page.py::test_nothing_of_a_row_becomes_an_element",),
    ),
    Mutant(
        "escape sequences of rows reach the terminal",
        f"{DATA}/inspect.py",
        "    return visible(text).replace(",
        "    return text.replace(",
        ("tests/data/inspection/test_terminal.py::test_rows_cannot_command_the_terminal_or_the_markup",),
    ),
    Mutant(
        "what a length cuts counted from the wrong end",
        f"{DATA}/inspection/lengths.py",
        "truncate(level, self._mode)",
        'truncate(level, "keep_start")',
        ("tests/data/inspection/test_lengths.py::test_every_level_costs_what_cutting_there_costs",),
    ),
    Mutant(
        "half alike called a near duplicate",
        f"{DATA}/inspection/duplicates.py",
        "    return similarity(first, second) >= THRESHOLD",
        "    return similarity(first, second) >= 0.5",
        ("tests/data/inspection/test_duplicates.py::test_rows_below_the_threshold_are_not_called_near",),
    ),
    Mutant(
        "errors in the data end in success",
        "src/sartor/cli/inspect.py",
        "    return int(any(inspection.has_errors for inspection in inspections))",
        "    return 0",
        ("tests/cli/test_inspect.py::test_bad_rows_are_findings_and_give_1",),
    ),
)

ENCODING = (
    Mutant(
        "cache ignores the template",
        f"{DATA}/encoding/keys.py",
        '        "chat_template": tokenizer.chat_template,',
        '        "chat_template": None,',
        ("tests/data/test_cache.py::test_whatever_it_depends_on_makes_another_entry",),
    ),
    Mutant(
        "cache ignores the order of rows",
        f"{DATA}/encoding/keys.py",
        '"rows": rows_digest(dataset),',
        '"rows": sorted(map(str, dataset)),',
        ("tests/data/test_cache.py::test_whatever_it_depends_on_makes_another_entry",),
    ),
    Mutant(
        "damaged cache entry used",
        f"{DATA}/encoding/cache.py",
        'if not is_new and digest_of_file(path) != expected["xxh3_128"]:',
        "if False:",
        ("tests/data/test_cache.py::test_a_damaged_entry_is_said_and_made_again",),
    ),
    Mutant(
        "rows of a stream counted in each epoch",
        f"{DATA}/encoding/stream.py",
        "        is_new = indices[-1] >= self._num_rows\n",
        "        is_new = True\n",
        ("tests/data/test_stream.py::test_counts_are_those_of_the_same_rows_in_memory_and_each_row_counts_once",),
    ),
    Mutant(
        "what is read of a stream not written",
        f"{TRAINER}/training.py",
        "            result = train_loop.run(events)\n            count_streams(trainer)\n",
        "            result = train_loop.run(events)\n",
        ("tests/hf/test_streams.py::test_data_json_and_log_tell_at_the_end_what_was_read",),
    ),
    Mutant(
        "inspect counts otherwise than training",
        f"{DATA}/inspection/examine.py",
        "self._counts.foreseen(self._kept_labels, lengths, how),",
        "self._counts.foreseen(self._kept_labels, lengths, None),",
        ("tests/data/inspection/test_examine.py::test_the_counts_are_those_of_a_training_run",),
    ),
    Mutant(
        "only the first source compared with the evaluation",
        "src/sartor/cli/inspect.py",
        "[one for one, _ in train])]",
        "[one for one, _ in train[:1]])]",
        (
            "tests/cli/test_inspect.py::"
            "test_several_sources_are_inspected_and_then_their_mixture_counted_as_in_training",
        ),
    ),
    Mutant(
        "large files kept in memory",
        f"{DATA}/reading/large.py",
        ">= entries.LARGE_BYTES",
        ">= 1 << 60",
        ("tests/data/test_large.py::test_a_file_larger_than_memory_is_read",),
    ),
    Mutant(
        "large tokens kept in memory",
        f"{DATA}/encoding/assemble.py",
        ">= entries.LARGE_BYTES",
        ">= 1 << 60",
        ("tests/data/test_large.py::test_without_a_cache_they_are_in_a_temporary_folder_for_as_long_as_they_are_used",),
    ),
    Mutant(
        "changed files taken from the cache",
        f"{DATA}/reading/large.py",
        "path.suffixes[-2:], digest_of_file(path)]",
        "path.suffixes[-2:]]",
        ("tests/data/test_large.py::test_they_are_read_once_and_again_when_they_change_or_are_damaged",),
    ),
    Mutant(
        "cache used without waiting",
        f"{DATA}/entries.py",
        "            fcntl.flock(file, fcntl.LOCK_EX)\n",
        "            pass\n",
        ("tests/data/test_cache.py::test_a_second_process_waits_for_the_first_and_finds_what_it_made",),
    ),
    Mutant(
        "rows out of order with processes",
        f"{DATA}/encoding/workers.py",
        "            waiting.append(pool.submit(encode, first, table))",
        "            waiting.appendleft(pool.submit(encode, first, table))",
        ("tests/data/test_workers.py::test_tables_are_bit_identical_for_one_two_and_three_processes",),
    ),
    Mutant(
        "counts of other processes lost",
        f"{DATA}/encoding/workers.py",
        "    tally.update(answer.tally)",
        "    pass",
        ("tests/data/test_workers.py::test_tables_are_bit_identical_for_one_two_and_three_processes",),
    ),
    Mutant(
        "the user's script runs in other processes",
        f"{DATA}/encoding/workers.py",
        '        sys.modules["__main__"] = ModuleType("__main__")\n',
        "        pass\n",
        ("tests/data/test_workers.py::test_a_script_without_a_main_guard_runs_once",),
    ),
    Mutant(
        "stream read without bound",
        f"{DATA}/encoding/ahead.py",
        "queue.Queue(num_items)",
        "queue.Queue()",
        ("tests/data/test_ahead.py::test_items_are_read_before_they_are_asked_for_and_no_more_than_allowed",),
    ),
)

_PLANTED = "tests/data/test_bad_rows.py::test_every_kind_of_bad_row_in_a_thousand_is_named_with_its_line"
_SKIPPED = "tests/data/test_bad_rows.py::test_skipped_rows_are_counted_and_the_others_keep_their_lines"

SOURCES = (
    Mutant(
        "ids not held against the embedding",
        f"{DATA}/encoding/limits.py",
        "is_outside = values >= num_embeddings",
        "is_outside = values > num_embeddings",
        ("tests/data/test_limits.py::test_a_bad_row_is_named",),
    ),
    Mutant(
        "a defect of our own swallowed by the forecast",
        "src/sartor/memory/failure.py",
        'return bool(callers) and callers[-1] == "sartor"',
        "return False",
        ("tests/memory/test_failure.py::test_a_defect_of_our_own_fails_the_tests_and_not_a_users_run",),
    ),
    Mutant(
        "a profiler of the user's ended",
        "src/sartor/memory/trace.py",
        'self.reason = _profiler_of_the_user() if self._kind.is_host else ""',
        'self.reason = ""',
        ("tests/run/test_rehearsal.py::test_a_profiler_of_the_users_keeps_its_session",),
    ),
    Mutant(
        "unreadable line dropped",
        f"{DATA}/encoding/usable.py",
        "            problems.add(kind, place, message, excerpt)",
        "            pass",
        (_PLANTED,),
    ),
    Mutant(
        "skipped rows not counted",
        f"{DATA}/encoding/usable.py",
        "        problems.update(found)\n        if not found:",
        "        if not found:",
        (_SKIPPED,),
    ),
    Mutant(
        "line numbers from 0",
        f"{DATA}/reading/text_files.py",
        "    for number, raw in enumerate(stream, 1):",
        "    for number, raw in enumerate(stream):",
        (_PLANTED,),
    ),
    Mutant(
        "blank lines not counted",
        f"{DATA}/reading/text_files.py",
        "    for number, raw in enumerate(stream, 1):",
        "    for number, raw in enumerate((line for line in stream if line.strip()), 1):",
        ("tests/data/test_sources.py::test_rows_know_their_line_after_filtering_and_shuffling",),
    ),
    Mutant(
        "counts of a failed attempt kept",
        f"{DATA}/encoding/usable.py",
        "            own.update(tally - before)\n            _set(tally, before)",
        "            own.update(tally - before)",
        ("tests/data/test_bad_rows.py::test_a_count_of_what_was_done_leaves_out_skipped_rows",),
    ),
    Mutant(
        "format by the first row",
        f"{DATA}/rows/kinds.py",
        "key=lambda entry: (-entry.num_rows, order.index(entry.kind))",
        "key=lambda entry: entry.first",
        ("tests/data/test_formats.py::test_the_format_is_that_of_most_rows_and_not_of_the_first",),
    ),
    Mutant(
        "weights of sources ignored",
        f"{DATA}/reading/mixture.py",
        "[weight / total for weight in weights]",
        "[1 / len(weights) for weight in weights]",
        ("tests/data/test_mixture.py::test_weights_are_shares_and_the_seed_decides",),
    ),
    Mutant(
        "end of a mixture ignored",
        f"{DATA}/reading/mixture.py",
        "stopping_strategy=settings.mix_until",
        'stopping_strategy="first_exhausted"',
        ("tests/data/test_mixture.py::test_where_a_mixture_ends_is_a_named_option",),
    ),
    Mutant(
        "places not packed",
        f"{DATA}/reading/places.py",
        "            ends = ends[np.concatenate([np.zeros(1, np.int64), np.cumsum(per_block)])]",
        "            ends = ends[: len(per_block) + 1]",
        ("tests/data/test_bad_rows.py::test_places_follow_examples_through_dropping_shuffling_and_packing",),
    ),
    Mutant(
        "text taken for the JSON that it looks like",
        f"{DATA}/reading/tables.py",
        "        if not _has_json(feature):",
        "        if True:",
        ("tests/data/test_formats.py::test_text_that_looks_like_a_number_stays_text_beside_numbers",),
    ),
)

_ANEW = "tests/run/test_out_of_memory.py::test_a_failure_at_every_call_leaves_the_same_weights_bit_for_bit"

RECOVERY = (
    Mutant(
        "partial gradient kept after a failure",
        f"{RUN}/stepper.py",
        "            updater.discard()\n            restore_generators(before)\n",
        "            restore_generators(before)\n",
        (f"{_ANEW}[backward]",),
    ),
    Mutant(
        "a batch begun anew forgets the generators",
        f"{RUN}/stepper.py",
        "            updater.discard()\n            restore_generators(before)\n",
        "            updater.discard()\n",
        ("tests/run/test_out_of_memory.py::test_dropout_draws_the_same_when_a_batch_is_redone",),
    ),
    Mutant(
        "an optimizer's states not foreseen",
        f"{RUN}/stepper.py",
        '        self.recovery.guard.allocate(self._update.needed_bytes(), "the states of the optimizer")\n',
        "",
        ("tests/run/test_out_of_memory.py::test_an_optimizers_states_are_foreseen_before_they_are_made",),
    ),
    Mutant(
        "what cannot fit is tried all the same",
        "src/sartor/memory/guard.py",
        "needed > room.usable_bytes",
        "False",
        ("tests/memory/test_guard.py::test_what_certainly_does_not_fit_is_not_tried",),
    ),
    Mutant(
        "answers of steps that are done again are kept",
        f"{TRAINER}/sampling.py",
        "    if path.exists() and path.stat().st_size > num_bytes:",
        "    if False:",
        ("tests/run/test_evaluate.py::test_a_resumed_run_goes_on_with_its_table_also_in_another_folder",),
    ),
    Mutant(
        "the attention stays registered after a run",
        f"{ENGINE}/attention.py",
        "        registered_in(interface).pop(NAME, None)",
        "        pass",
        ("tests/engine/test_attention.py::test_transformers_knows_it_within_the_block_alone",),
    ),
    Mutant(
        "rows that a transform makes are taken for those that were prepared",
        f"{TRAINER}/preparation.py",
        'if getattr(dataset, "format", {}).get("type") == "custom":',
        "if False:",
        ("tests/run/test_fingerprints.py::test_a_transform_that_is_set_later_is_seen",),
    ),
    Mutant(
        "answers not foreseen",
        f"{TRAINER}/sampling.py",
        "            self._require_memory(self._prompts[start : start + self._at_once])\n",
        "",
        ("tests/run/test_out_of_memory.py::test_answers_that_would_not_fit_are_asked_for_fewer_at_a_time",),
    ),
    Mutant(
        "two signals taken for one",
        f"{RUN}/interrupt.py",
        " and self._num_came() < 2:",
        ":",
        ("tests/run/test_interrupt.py::test_two_within_one_long_operation_are_two",),
    ),
    Mutant(
        "a piece of a failed step is not put back",
        f"{OPTIM}/transaction.py",
        "                copy.put_back({} if host is not None else self.optimizer.state)",
        "                pass",
        ("tests/run/test_out_of_memory.py::test_a_step_that_fails_halfway_reaches_each_parameter_once",),
    ),
    Mutant(
        "a failed step begins anew with pieces that are done",
        f"{OPTIM}/transaction.py",
        "            self._done.update(piece)",
        "            pass",
        ("tests/run/test_out_of_memory.py::test_a_step_that_fails_halfway_reaches_each_parameter_once",),
    ),
    Mutant(
        "a finer cut is not written into the plan",
        "src/sartor/run/policies.py",
        "            freeze(trainer, plan)",
        "            pass",
        (
            "tests/run/test_out_of_memory.py::"
            "test_a_failure_twice_at_every_micro_step_makes_the_cut_finer_and_keeps_the_gradient[forward]",
        ),
    ),
    Mutant(
        "an accepted precision is overruled by the old plan",
        "src/sartor/run/resume.py",
        '_OF_THE_PLAN = frozenset({"device", "bf16", "fp16", "strict_precision"})',
        '_OF_THE_PLAN = frozenset({"device"})',
        ("tests/whole/test_resume.py::test_an_accepted_precision_is_the_one_that_is_computed_in",),
    ),
    Mutant(
        "what the heap keeps without need is never given back",
        "src/sartor/memory/surplus.py",
        "            self._give_back()\n",
        "",
        ("tests/memory/test_surplus.py",),
    ),
    Mutant(
        "the heap's surplus is not watched",
        "src/sartor/memory/guard.py",
        "            self._surplus.watch(anonymous - heap.used_bytes - self._other_bytes)",
        "            pass",
        ("tests/memory/test_guard.py",),
    ),
    Mutant(
        "a later signal forgets that another was the second",
        f"{RUN}/interrupt.py",
        "self.is_urgent |= self._is_held",
        "self.is_urgent = self._is_held",
        ("tests/run/test_interrupt.py",),
    ),
    Mutant(
        "evaluated with more tokens at once than training has",
        f"{RUN}/evaluate.py",
        "min(plan.micro_batch_tokens, plan.pass_tokens or plan.micro_batch_tokens)",
        "plan.micro_batch_tokens",
        ("tests/run/test_evaluate.py::test_no_evaluation_of_a_run_takes_more_memory_than_its_steps",),
    ),
    Mutant(
        "an earlier run's checkpoint is called this run's last good one",
        "src/sartor/run/policies.py",
        " if checkpoint.run_of(path) == trainer.checkpoints.run]",
        "]",
        ("tests/run/test_non_finite.py",),
    ),
    Mutant(
        "a skipped batch is not counted",
        f"{RUN}/steps.py",
        "        self.num_skipped += is_skipped\n",
        "",
        ("tests/run/test_non_finite.py",),
    ),
    Mutant(
        "a skipped batch advances the schedule",
        f"{RUN}/stepper.py",
        "        self._skips = True\n",
        "",
        ("tests/run/test_non_finite.py",),
    ),
    Mutant(
        "answers are asked in training mode's random numbers",
        "src/sartor/chat/sample.py",
        "    with generators_apart(model.device):",
        "    with torch.no_grad():",
        ("tests/run/test_evaluate.py::test_asking_changes_neither_weights_nor_random_numbers",),
    ),
)


def resumed(case: str) -> str:
    """A test of runs that go on from a checkpoint."""
    return f"tests/whole/test_resume.py::{case}"


CHECKPOINTS = (
    Mutant(
        "generator state not restored",
        f"{TRAINER}/train_loop.py",
        "self.data_loader.start_at(self._cursor, self._find_generators, stops=stops)",
        "self.data_loader.start_at(self._cursor, lambda: None, stops=stops)",
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "generators copied before on_step_end",
        f"{TRAINER}/train_loop.py",
        "        self._generators = generator_states()\n        if control.should_evaluate:",
        "        if control.should_evaluate:",
        ("tests/whole/test_draws.py::test_how_often_a_run_saves_does_not_change_what_it_draws",),
    ),
    Mutant(
        "an optimizer's state of another shape is loaded",
        f"{RUN}/checked_state.py",
        "    is_right = isinstance(value, torch.Tensor) and value.shape == present.shape\n",
        "    is_right = isinstance(value, torch.Tensor)\n",
        ("tests/whole/test_tampered.py::test_a_tensor_that_no_run_writes_is_refused_by_its_place",),
    ),
    Mutant(
        "a link is opened as the file that it leads to",
        f"{RUN}/plain_files.py",
        "                if entry.is_symlink():",
        "                if False:",
        ("tests/whole/test_tampered.py::test_a_folder_that_no_run_writes_is_refused_by_its_file",),
    ),
    Mutant(
        "a few values of a frozen parameter are looked at",
        f"{TRAINER}/fingerprints.py",
        "tensor.detach().reshape(-1).split(_CHUNK_VALUES)",
        "tensor.detach().reshape(-1)[:1024].split(_CHUNK_VALUES)",
        ("tests/whole/test_frozen.py::test_a_tensors_digest_is_of_every_value_and_not_of_its_dtype",),
    ),
    Mutant(
        "cursor off by one",
        f"{TRAINER}/data_loader.py",
        'skip = int(start["optimizer_batches"]) if',
        'skip = int(start["optimizer_batches"]) + 1 if',
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "manifest first",
        f"{RUN}/checkpoint.py",
        '    for path in sorted(folder.rglob("*")):',
        "    (folder / MANIFEST_NAME).touch()\n    _to_disk(folder / MANIFEST_NAME)\n"
        '    for path in sorted(folder.rglob("*")):',
        (
            "tests/run/test_checkpoint.py::"
            "test_files_are_on_the_disk_before_the_manifest_and_the_manifest_before_the_name",
        ),
    ),
    Mutant(
        "a flipped bit passes",
        f"{RUN}/checkpoint.py",
        'if (found := _checksums(path)) != expected["xxh3_64"]:',
        "if False:",
        ("tests/run/test_checkpoint.py::test_every_damage_is_noticed_and_the_one_before_is_used",),
    ),
    Mutant(
        "scaler not restored",
        f"{RUN}/stepper.py",
        '            self._scaler.load_state_dict(dict(state["scaler"]))',
        "            pass",
        (resumed("test_the_scale_of_float16_goes_on"),),
    ),
    Mutant(
        "metrics not cut",
        f"{TRAINER}/resuming.py",
        "            os.truncate(path, num_bytes)",
        "            pass",
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[stream]"),),
    ),
    Mutant(
        "count of steps not restored",
        f"{RUN}/steps.py",
        'self.done, self.num_skipped = state["done"], state["num_skipped"]',
        'self.num_skipped = state["num_skipped"]',
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[packed]"),),
    ),
    Mutant(
        "sums since the last log not restored",
        f"{TRAINER}/train_loop.py",
        '        self.window.load_state(train_loop["window"], trainer.args.device)',
        "        pass",
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "masters taken from the rounded weights",
        f"{TRAINER}/model_files.py",
        "return tensor is not None and is_there and tensor.dtype == self.dtypes[name]",
        "return tensor is not None and is_there",
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "masters taken from weights that an own save_model rounded",
        f"{TRAINER}/checkpoint_writer.py",
        "    if one.dtype != other.dtype or one.shape != other.shape:",
        "    if one.dtype != other.dtype:\n        return True\n    if one.shape != other.shape:",
        ("tests/run/test_model_files.py::test_a_checkpoint_that_only_transformers_can_write_is_gone_on_from",),
    ),
    Mutant(
        "a tensor of the model returned before the state was written",
        f"{TRAINER}/checkpoint_writer.py",
        "stay.__contains__",
        "lambda name: False",
        (
            "tests/run/test_model_files.py::"
            "test_a_checkpoint_of_a_published_model_is_loaded_as_the_model_that_was_trained",
        ),
    ),
    Mutant(
        "weights written unrounded under the name of a smaller dtype",
        f"{RUN}/tensor_file.py",
        "yield flat[start : start + step].to(dtype).cpu()",
        "yield flat[start : start + step].cpu()",
        ("tests/run/test_model_files.py::test_weights_are_rounded_as_they_are_written",),
    ),
    Mutant(
        "tied weights written twice",
        f"{TRAINER}/model_files.py",
        "    tensors = remove_tied_weights_from_state_dict(state, model)",
        "    tensors = state",
        ("tests/run/test_model_files.py::test_weights_are_rounded_as_they_are_written",),
    ),
    Mutant(
        "an optimizer's step does not wait for what is being written",
        f"{RUN}/stepper.py",
        "            self.before_step()\n",
        "",
        (resumed("test_an_update_waits_for_what_is_written_from_the_live_tensors"),),
    ),
    Mutant(
        "what is lent not copied before it changes",
        f"{RUN}/snapshot.py",
        "            copies = {name: _copied(self._tensors[name]) for name in self._versions}",
        "            copies = {name: self._tensors[name] for name in self._versions}",
        ("tests/run/test_snapshot.py::test_what_is_being_read_is_waited_for_and_the_rest_is_copied",),
    ),
    Mutant(
        "a model that is due not waited for",
        f"{RUN}/snapshot.py",
        "            self._changed.wait_for(lambda: not self._model_is_due)\n",
        "",
        ("tests/run/test_snapshot.py::test_a_model_that_is_due_is_waited_for_even_if_its_reading_has_not_begun",),
    ),
    Mutant(
        "a callback that changes weights finds them lent",
        f"{TRAINER}/checkpoints.py",
        "lends = args.save_in_background and not _somebody_may_change(trainer)",
        "lends = args.save_in_background",
        (resumed("test_a_callback_may_change_weights_between_two_steps"),),
    ),
    Mutant(
        "a checkpoint saved while lines of metrics wait for room",
        f"{TRAINER}/train_loop.py",
        "        if self.metrics_writer.num_waiting:",
        "        if False:",
        (resumed("test_lines_of_metrics_that_have_no_room_wait_for_it"),),
    ),
    Mutant(
        "an evaluation that memory ended is not done anew",
        f"{TRAINER}/train_loop.py",
        "        except BaseException:  # whatever",
        "        except KeyboardInterrupt:  # whatever",
        ("tests/run/test_out_of_memory.py::test_an_evaluation_that_memory_ended_is_done_anew_and_logged_once",),
    ),
    Mutant(
        "memory that ends a run loses its last whole step",
        f"{TRAINER}/training.py",
        '            _save_interrupted(trainer, train_loop, "memory ran out")\n',
        "",
        ("tests/run/test_out_of_memory.py::test_a_run_that_memory_ends_saves_its_last_whole_step_and_goes_on_from_it",),
    ),
    Mutant(
        "callbacks not restored",
        f"{TRAINER}/resuming.py",
        "    restore_callbacks(trainer, saved.stateful_callbacks)",
        "    pass",
        (resumed("test_callbacks_go_on_counting"),),
    ),
    Mutant(
        "frozen plan not kept",
        f"{TRAINER}/setup.py",
        "plan = frozen or _plan(",
        "plan = _plan(",
        (resumed("test_the_plan_of_the_checkpoint_holds_whatever_memory_is_free"),),
    ),
    Mutant(
        "half an update may be saved",
        f"{TRAINER}/train_loop.py",
        "                self.is_whole = False  # until",
        "                self.is_whole = True  # until",
        (resumed("test_a_defect_in_the_middle_of_an_update_saves_nothing"),),
    ),
)

LOCKED = "tests/run/test_folder_lock.py"

SHARING = (
    Mutant(
        "a run folder is not locked",
        f"{TRAINER}/training.py",
        "            stack.enter_context(folder_lock.held(trainer.args.output_dir))",
        "            pass",
        ("tests/run/test_saving.py::test_a_folder_is_one_runs_while_it_trains_and_free_afterwards",),
    ),
    Mutant(
        "a forked child keeps its parent's lock",
        f"{RUN}/folder_lock.py",
        "        os.register_at_fork(",
        "        dict(",
        (f"{LOCKED}::test_a_killed_one_holds_nothing_though_its_children_live",),
    ),
    Mutant(
        "a lock is taken of a file that was deleted meanwhile",
        f"{RUN}/folder_lock.py",
        "            if _leads_to(path, descriptor):\n                return",
        "            if True:\n                return",
        (f"{LOCKED}::test_a_holder_that_ends_while_the_next_one_begins_leaves_it_a_lock_that_others_see",),
    ),
    Mutant(
        "a write error of the log ends the run",
        f"{TRAINER}/training.py",
        "        stack.enter_context(lines_may_be_lost())",
        "        pass",
        ("tests/hf/test_reporting.py::test_a_script_whose_output_has_no_room_trains_to_its_end",),
    ),
    Mutant(
        "a callback's stop binds the next job",
        f"{TRAINER}/train_loop.py",
        '        control["should_training_stop"] = has_ended',
        '        has_ended = has_ended or control["should_training_stop"]',
        ("tests/hf/test_stopping.py",),
    ),
    Mutant(
        "an epoch in which a run was stopped counts as trained",
        f"{TRAINER}/train_loop.py",
        "        if self.trainer.control.should_training_stop and num_device_batches < self.steps_in_epoch:",
        "        if False:",
        ("tests/hf/test_stopping.py",),
    ),
)

MEMORY_ROOM = "src/sartor/memory"
FORESEEN = "tests/memory/test_simulate.py"

FORESIGHT = (
    Mutant(
        "a saved activation is not counted",
        f"{MEMORY_ROOM}/tracker.py",
        "        for tensor in _tensors(result):",
        "        for tensor in _tensors(result) if 'silu' not in str(func) else ():",
        (f"{FORESEEN}::test_the_peak_is_what_the_allocator_counts",),
    ),
    Mutant(
        "the first update is left out",
        f"{MEMORY_ROOM}/simulate.py",
        "    return _prediction([*rehearsals, first, *between, *after], notes, plan, training)\n",
        "    return _prediction([*rehearsals, *between, *after], notes, plan, training)\n",
        (f"{FORESEEN}::test_the_peak_is_what_the_allocator_counts",),
    ),
    Mutant(
        "states that are there from the beginning count twice",
        f"{MEMORY_ROOM}/simulated_step.py",
        "        simulated_step.optimizer.state.clear()  # some have states from the beginning\n",
        "",
        (f"{FORESEEN}::test_the_peak_is_what_the_allocator_counts",),
    ),
    Mutant(
        "a rehearsal's update is not foreseen",
        f"{MEMORY_ROOM}/rehearsal_peak.py",
        "    moments = [dict(update.components) | {Component.LOGITS: 0}]\n",
        "    moments = []\n",
        ("tests/run/test_rehearsal.py::test_the_rehearsal_itself_is_foreseen_as_the_allocator_counts_it",),
    ),
    Mutant(
        "momentum that optim_args names is not foreseen",
        f"{OPTIM}/registry.py",
        "for option, parse in read.items() if option in said",
        'for option, parse in read.items() if option in said and option != "momentum"',
        (f"{FORESEEN}::test_what_optim_args_says_of_states_is_counted",),
    ),
    Mutant(
        "one coefficient for layers of all kinds",
        f"{MEMORY_ROOM}/extrapolate.py",
        "        below = counts(kinds[: place.num_below], self._kinds)\n",
        "        below = [place.num_below] * len(self._kinds)\n",
        (f"{FORESEEN}::test_layers_of_several_kinds_are_extrapolated_to_the_byte",),
    ),
    Mutant(
        "an extrapolation that is not affine is believed",
        f"{MEMORY_ROOM}/extrapolate.py",
        "            elif any(rest):\n                return None\n",
        "",
        (f"{FORESEEN}::test_memory_that_is_not_affine_in_layers_is_simulated_in_full",),
    ),
    Mutant(
        "tied weights counted twice",
        f"{MEMORY_ROOM}/meta_model.py",
        "        model.tie_weights()",
        "        pass",
        (f"{FORESEEN}::test_components_are_what_they_are_called",),
    ),
    Mutant(
        "conversions of mixed dtypes forgotten",
        f"{MEMORY_ROOM}/scratch.py",
        "        **dict.fromkeys(_POINTWISE, _converted_operands),\n",
        "",
        ("tests/memory/test_scratch.py",),
    ),
)

REHEARSED = "tests/run/test_rehearsal.py"

REHEARSAL = (
    Mutant(
        "rehearsal leaves gradients",
        f"{TRAINER}/rehearsal.py",
        "        self._updater.discard()\n",
        "        pass\n",
        (f"{REHEARSED}::test_everything_is_put_back",),
    ),
    Mutant(
        "rehearsal moves generators",
        f"{TRAINER}/rehearsal.py",
        "        restore_generators(generators)\n",
        "",
        (f"{REHEARSED}::test_weights_are_the_same_bit_for_bit_with_and_without",),
    ),
    Mutant(
        "rehearsal keeps moments",
        f"{OPTIM}/transaction.py",
        "        self.optimizer.state.clear()\n",
        "        pass\n",
        (REHEARSED,),
    ),
    Mutant(
        "rehearsal updates weights",
        f"{OPTIM}/transaction.py",
        "                copy.parameter.copy_(copy.data)\n        return True",
        "                pass\n        return True",
        (REHEARSED,),
    ),
    Mutant(
        "rehearsal of an easy micro-batch",
        f"{TRAINER}/rehearsal.py",
        "best = max(found, key=measure)",
        "best = min(found, key=measure)",
        (f"{REHEARSED}::test_the_largest_micro_batch_of_the_run_is_taken",),
    ),
    Mutant(
        "a forecast that was too low stays",
        f"{TRAINER}/rehearsal.py",
        "pass_bytes=plan.pass_bytes + more",
        "pass_bytes=plan.pass_bytes",
        (f"{REHEARSED}::test_a_forecast_that_was_too_low_is_corrected_before_the_run_and_rehearsed_again",),
    ),
)

SEARCHED = "tests/memory/test_search.py"
GUARDED = "tests/memory/test_guard.py"

PLANNING = (
    Mutant(
        "the guard goes by a rule of thumb",
        f"{MEMORY_ROOM}/guard.py",
        "        if foreseen is not None:\n            return int(",
        "        if foreseen is None:\n            foreseen = 0.0\n        if False:\n            return int(",
        (f"{GUARDED}::test_what_was_simulated_takes_the_place_of_the_rule_of_thumb",),
    ),
    Mutant(
        "the heap's unused memory is lost",
        f"{MEMORY_ROOM}/limits.py",
        "return self.free_bytes + self.idle_bytes",
        "return self.free_bytes",
        (f"{GUARDED}::test_what_the_plan_says_fits_is_not_refused_by_the_guard",),
    ),
    Mutant(
        "explicit settings without their cost",
        f"{TRAINER}/planning.py",
        "    if all(getattr(settings, choice) is None for choice in PLAN_CHOICES):\n",
        "    if True:\n",
        ("tests/run/test_planning.py::test_what_was_asked_for_is_obeyed_by_the_search_too",),
    ),
    Mutant(
        "plan ignores the limit",
        "src/sartor/memory/search.py",
        "            if needed(setting) <= available_bytes:\n",
        "            if needed(setting) <= 2 * available_bytes:\n",
        (SEARCHED,),
    ),
    Mutant(
        "a card shows figures that are not there",
        "src/sartor/report/card.py",
        "for path, title in FIGURES.items() if path in facts.figures",
        "for path, title in FIGURES.items()",
        ("tests/report/test_hub.py::test_figures_that_were_not_drawn_are_not_shown",),
    ),
    Mutant(
        "rough simulations are never checked",
        "src/sartor/memory/decide.py",
        "        if self.needed(setting) != rough:\n",
        "        if False:\n",
        (f"{SEARCHED}::test_where_rough_simulations_are_wrong_all_are_made_in_full",),
    ),
    Mutant(
        "updates share the logits of other passes",
        "src/sartor/memory/simulate.py",
        "        known[key] = [_more(part, stands, -1) for part in updates]\n",
        "        known[key] = updates\n",
        ("tests/memory/test_simulate.py::test_what_settings_share_is_what_each_needs_by_itself",),
    ),
    Mutant(
        "plan takes what it prefers",
        "src/sartor/memory/search.py",
        "    if needed(preferred) <= available_bytes:\n",
        "    if needed(preferred) <= 8 * available_bytes:\n",
        (SEARCHED,),
    ),
    Mutant(
        "proposals without their bytes",
        "src/sartor/memory/plan_text.py",
        "{proposal.name}: {gigabytes(proposal.needed_bytes)}, a step",
        "{proposal.name}: a step",
        (SEARCHED,),
    ),
    Mutant(
        "margin dropped",
        "src/sartor/memory/estimates.py",
        "prediction.overhead_bytes + prediction.margin_bytes + self.memory",
        "prediction.overhead_bytes + self.memory",
        (SEARCHED,),
    ),
    Mutant(
        "some layers recomputed means all",
        f"{ENGINE}/recompute.py",
        "layer.gradient_checkpointing = number < num_whole or plan",
        "layer.gradient_checkpointing = True or plan",
        ("tests/engine/test_step.py::test_the_first_layers_alone_can_be_recomputed",),
    ),
)

RECOMPUTED = "tests/engine/test_recompute.py"
WAYS_TESTED = "tests/memory/test_execution_options.py"
STREAMED = "tests/optim/test_host_states.py"

WAYS = (
    Mutant(
        "autocast keeps copies of all weights",
        f"{ENGINE}/precision.py",
        "cache_enabled=False",
        "cache_enabled=True",
        (
            "tests/memory/test_simulate.py::"
            "test_recomputing_in_half_precision_no_copies_of_all_weights_are_kept_through_the_forward_pass",
        ),
    ),
    Mutant(
        "a product that was written to is used again",
        f"{ENGINE}/recompute.py",
        "self._results[self._places[key]].parts = None",
        "pass",
        (f"{RECOMPUTED}::test_a_product_that_the_model_writes_to_is_taken_again",),
    ),
    Mutant(
        "recomputing what is cheap takes products again",
        f"{ENGINE}/recompute.py",
        'how["context_fn"] = _contexts',
        "pass",
        (f"{RECOMPUTED}::test_products_and_attention_are_taken_once_and_what_is_cheap_twice",),
    ),
    Mutant(
        "attention with dropout is kept, and draws nothing again",
        f"{ENGINE}/recompute.py",
        "return _dropout(function, args, kwargs) == 0",
        "return True",
        (f"{RECOMPUTED}::test_what_is_kept_takes_many_operations_for_each_value",),
    ),
    Mutant(
        "an adapter's way back from its rank is kept",
        f"{ENGINE}/recompute.py",
        "WIDENED = 8",
        "WIDENED = 8_000",
        (f"{RECOMPUTED}::test_what_is_kept_takes_many_operations_for_each_value",),
    ),
    Mutant(
        "a layer's last product is kept for nothing",
        f"{ENGINE}/recompute.py",
        "            self._results[-1].parts = None",
        "            pass",
        (f"{RECOMPUTED}::test_a_layers_last_product_is_kept_only_where_what_follows_needs_it",),
    ),
    Mutant(
        "a last product that is needed is dropped",
        f"{ENGINE}/recompute.py",
        "self._saves_nothing &= is_asked or schema.name in _SAVE_NOTHING",
        "pass",
        (f"{RECOMPUTED}::test_a_layers_last_product_is_kept_only_where_what_follows_needs_it",),
    ),
    Mutant(
        "simulated, a layer's last product is kept",
        f"{ENGINE}/recompute.py",
        "is_asked or schema.name in _SAVE_NOTHING",
        "schema.name in _SAVE_NOTHING",
        (
            "tests/memory/test_simulate.py::"
            "test_what_is_kept_of_each_layer_is_foreseen_where_the_last_product_is_dropped",
        ),
    ),
    Mutant(
        "a failed piece keeps the states of the device",
        f"{OPTIM}/host_states.py",
        "self._optimizer.state[parameter] = home",
        "pass",
        (STREAMED,),
    ),
    Mutant(
        "new states do not reach the host",
        f"{OPTIM}/host_states.py",
        "home.copy_(state[name], non_blocking=True)",
        "pass",
        (STREAMED,),
    ),
    Mutant(
        "an update steps on the host's own memory",
        f"{OPTIM}/host_states.py",
        "return torch.empty_like(value, device=device, pin_memory=False).copy_(value, non_blocking=True)",
        "return value.to(device)",
        (STREAMED,),
    ),
    Mutant(
        "the optimizer's implementation is planned and not set",
        f"{TRAINER}/training.py",
        "    set_implementation(trainer.optimizer, engine.plan.optimizer_implementation)\n",
        "",
        ("tests/run/test_execution_options.py::test_the_implementation_that_was_asked_for_is_taken",),
    ),
    Mutant(
        "recomputing only what is cheap is never searched",
        f"{TRAINER}/planning.py",
        "cheap: tuple[bool, ...] = (False, True)",
        "cheap: tuple[bool, ...] = (False,)",
        (f"{WAYS_TESTED}::test_on_a_cpu_states_have_one_place_and_torch_two_implementations_at_most",),
    ),
    Mutant(
        "the host's memory counts to the device",
        "src/sartor/memory/tracker.py",
        "if not has_memory(tensor):",
        "if False:",
        (f"{WAYS_TESTED}::test_on_a_gpu_the_hosts_states_are_not_the_devices",),
    ),
    Mutant(
        "streamed states come and do not go back",
        "src/sartor/memory/speed.py",
        "streamed = 2 * streamed_bytes",
        "streamed = streamed_bytes",
        (f"{WAYS_TESTED}::test_streamed_states_cost_their_way_to_the_device_and_back",),
    ),
    Mutant(
        "what the host's memory spares is not weighed",
        f"{MEMORY_ROOM}/decide.py",
        "return total - self.saved(setting.execution) + self.saved(plain)",
        "return total",
        (SEARCHED,),
    ),
)

SPLIT_TESTED = "tests/run/test_device_batch.py"

SPLITTING = (
    Mutant(
        "the split of a batch is planned and not taken",
        f"{TRAINER}/device_batch.py",
        "    take(trainer, size, steps)\n",
        "",
        (f"{SPLIT_TESTED}::test_the_plan_splits_and_everyone_sees_the_same_parts",),
    ),
    Mutant(
        "a run that goes on splits anew",
        f"{TRAINER}/device_batch.py",
        "take(trainer, size, steps, is_final=True)",
        "pass",
        (f"{SPLIT_TESTED}::test_a_run_that_goes_on_keeps_its_split_and_its_weights",),
    ),
    Mutant(
        "free memory decides which rows are dropped",
        f"{TRAINER}/device_batch.py",
        "    if args.dataloader_drop_last:",
        "    if False:",
        (f"{SPLIT_TESTED}::test_free_memory_does_not_decide_what_is_learned",),
    ),
)

ROUNDED = "tests/optim/test_rounded_update.py"
ROUNDED_RUN = "tests/hf/test_stochastic_rounding.py"
ROUNDED_NUMBERS = "tests/engine/test_rounding.py"
ROUNDING: tuple[Mutant, ...] = (
    Mutant(
        "random bits seeded without the update's number",
        f"{OPTIM}/rounded_update.py",
        "(self._seed, number, part.number, start // BLOCK_VALUES)",
        "(self._seed, part.number, start // BLOCK_VALUES)",
        (f"{ROUNDED}::test_update_parameter_block_and_seed_all_have_bits_of_their_own",),
    ),
    Mutant(
        "cut off without random bits",
        f"{ENGINE}/rounding.py",
        ".random_(0, 1 << _LOWER_BITS, generator=generator)",
        ".zero_()",
        (f"{ROUNDED_NUMBERS}::test_the_mean_of_many_roundings_is_the_number",),
    ),
    Mutant(
        "other bits after memory that ended",
        f"{ENGINE}/rounding.py",
        'generator.manual_seed(int.from_bytes(digest, "big") >> 1)',
        "generator.seed()",
        (f"{ROUNDED_RUN}::test_memory_that_ends_within_an_update_is_survived_and_changes_no_bit",),
    ),
    Mutant(
        "updates counted anew where a run is resumed",
        f"{RUN}/stepper.py",
        "        self._update.number = self.steps.done",
        "        self._update.number += 1",
        (f"{ROUNDED_RUN}::test_a_stopped_run_goes_on_bit_for_bit",),
    ),
    Mutant(
        "a stand-in's state left in the optimizer",
        f"{OPTIM}/rounded_update.py",
        "                states.pop(stand_in, None)",
        "                pass",
        (f"{ROUNDED}::test_memory_that_ends_within_a_slice_leaves_it_as_it_was_and_changes_no_bit",),
    ),
    Mutant(
        "a finite weight rounded up to infinity",
        f"{ENGINE}/rounding.py",
        "    up.masked_fill_(~(wide.abs() < LARGEST), 0)\n",
        "",
        (f"{ROUNDED_NUMBERS}::test_the_largest_numbers_never_become_infinite_and_every_kind_of_nan_stays_one",),
    ),
    Mutant(
        "the norm of bfloat16 gradients in bfloat16",
        f"{ENGINE}/rounding.py",
        "torch.linalg.vector_norm(part.float())",
        "torch.linalg.vector_norm(part)",
        (f"{ROUNDED_NUMBERS}::test_the_norm_of_bfloat16_gradients_is_a_float32_number",),
    ),
    Mutant(
        "masters kept where weights are to be bfloat16",
        f"{ENGINE}/precision.py",
        "            if rounds and parameter.requires_grad",
        "            if False and parameter.requires_grad",
        (f"{ROUNDED_RUN}::test_parameters_and_gradients_are_bfloat16_and_the_plan_says_so",),
    ),
    Mutant(
        "states of what a simulation leaves out are forgotten",
        f"{MEMORY_ROOM}/simulated_update.py",
        "            if not states.get(parameter):",
        "            if False:",
        ("tests/memory/test_rounding.py::test_leaving_out_what_repeats_in_an_update_leaves_out_no_byte",),
    ),
    Mutant(
        "an optimizer of whole matrices taken in blocks of values",
        f"{OPTIM}/registry.py",
        '    _torchs(lambda: torch.optim.Adafactor, 0, "parameter"',
        "    _torchs(lambda: torch.optim.Adafactor, 0",
        ("tests/optim/test_registry.py::test_a_step_on_a_part_of_the_values_is_the_step_on_them",),
    ),
    Mutant(
        "a subclass taken in pieces as its class is",
        f"{OPTIM}/registry.py",
        "    return of_class(type(optimizer))",
        "    return of_base(type(optimizer))",
        ("tests/optim/test_registry.py::test_an_own_subclass_is_stepped_on_at_once",),
    ),
    Mutant(
        "stochastic rounding proposed for an adapter",
        "src/sartor/memory/proposals.py",
        "    if training.lora is not None or training.four_bit or rounds",
        "    if training.four_bit or rounds",
        ("tests/memory/test_rounding.py::test_it_is_not_proposed_where_it_is_there_or_cannot_be_or_spares_nothing",),
    ),
)

MUTANTS: tuple[Mutant, ...] = (
    *WAYS,
    *ROUNDING,
    *SPLITTING,
    *WEIGHTING,
    *STEPPING,
    *ISOLATION,
    *TARGETS,
    *LOSS,
    *STATE,
    *BEGINNINGS,
    *PROOF,
    *TARGET_OPTIONS,
    *WEIGHTS,
    *INSPECTION,
    *ENCODING,
    *SOURCES,
    *RECOVERY,
    *CHECKPOINTS,
    *SHARING,
    *FORESIGHT,
    *REHEARSAL,
    *PLANNING,
)
