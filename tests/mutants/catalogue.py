"""The mutants: small changes that would cost much if no test noticed them, each with the tests that must.

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


def resumed(case: str) -> str:
    """A test of runs that go on from a checkpoint."""
    return f"tests/whole/test_resume.py::{case}"


WEIGHTED_TRAINING = "tests/hf/test_weights.py::test_a_weighted_training_is_a_plain_loop_with_weighted_means"

ENGINE, DATA, OPTIM, RUN, HF = (f"src/sartor/{room}" for room in ("engine", "data", "optim", "run", "hf"))
ANEW = "tests/run/test_out_of_memory.py::test_a_failure_at_every_call_leaves_the_same_weights_bit_for_bit"
LOCKED = "tests/run/test_folder_lock.py"
REHEARSED = "tests/run/test_rehearsal.py"
STREAMED = "tests/optim/test_host_states.py"
ROUNDED = "tests/optim/test_rounded_update.py"
ROUNDED_NUMBERS = "tests/engine/test_rounding.py"

MATHEMATICS = (
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
        "self._total_weight = total_weight",
        "self._total_weight = num_tokens",
        (plain_loop("whole"),),
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
            self.scheduler.step()
""",
        """        if not self._was_skipped and not self._steps_on_metrics:
            self.scheduler.step()
        learning_rate = self._learning_rate()
""",
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
        "a loss that is not finite goes on",
        f"{RUN}/stepper.py",
        "if not torch.isfinite(total.loss_sum):",
        "if False:",
        ("tests/whole/test_mathematics.py::test_a_loss_that_is_not_finite_stops_the_run_and_names_step_and_rows",),
    ),
    Mutant(
        "last partial batch dropped",
        "src/sartor/batching/order.py",
        "    if drop_last and batches",
        "    if batches",
        (plain_loop("whole"),),
    ),
    Mutant(
        "the same order in every epoch",
        "src/sartor/batching/order.py",
        "manual_seed(seed + epoch)",
        "manual_seed(seed)",
        (plain_loop("whole"),),
    ),
    Mutant(
        "documents leak into each other",
        f"{ENGINE}/step.py",
        "        self._micro = micro\n",
        '        if "document_lengths" in inputs:\n'
        '            inputs["document_lengths"].tokens = (micro.num_tokens,)\n'
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
        "a row lost at each chunk's end",
        f"{ENGINE}/loss.py",
        "for start in form.pieces(targets_N.shape[0], chunk_rows)",
        "for start in form.pieces(targets_N.shape[0], chunk_rows + 1)",
        ("tests/engine/test_loss.py::test_sums_and_gradients_equal_the_plain_formula",),
    ),
    Mutant(
        "label smoothing with the wrong sign",
        f"{ENGINE}/objectives.py",
        "gradient_NV.sub_((self.label_smoothing",
        "gradient_NV.add_((self.label_smoothing",
        (plain_loop("smoothed"),),
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
        "gradients of a tied head replaced",
        f"{ENGINE}/loss.py",
        "            if self.weight.grad is None:",
        "            if True:",
        ("tests/engine/test_loss.py::test_gradients_are_added_to_what_is_there",),
    ),
    Mutant(
        "the head's check passes everything",
        f"{ENGINE}/step.py",
        "        if not difference <= tolerance:",
        '        if difference == float("inf"):',
        ("tests/engine/test_step.py::test_head_check_refuses_logits_that_it_cannot_explain",),
    ),
    Mutant(
        "weights ignored by the gradient",
        f"{ENGINE}/loss.py",
        "loss_C, factor_C, weight_sum = loss_C * weights_C, factor_C * weights_C, weights_C.sum()",
        "loss_C, weight_sum = loss_C * weights_C, weights_C.sum()",
        (WEIGHTED_TRAINING,),
    ),
    Mutant(
        "a weight next to its token's",
        "src/sartor/batching/cut.py",
        "weights_T[target_rows_N + 1]",
        "weights_T[target_rows_N]",
        ("tests/engine/test_weights.py::test_a_token_that_weighs_nothing_is_no_target",),
    ),
    Mutant(
        "masters not widened",
        f"{ENGINE}/precision.py",
        "                parameter.data = parameter.data.float()\n            parameter.grad = None",
        "                pass\n            parameter.grad = None",
        ("tests/engine/test_precision.py::test_updates_smaller_than_a_bf16_step_add_up",),
    ),
    Mutant(
        "new states do not reach the host",
        f"{OPTIM}/host_states.py",
        "home.copy_(state[name], non_blocking=True)",
        "pass",
        (STREAMED,),
    ),
    Mutant(
        "cut off without random bits",
        f"{ENGINE}/rounding.py",
        ".random_(0, 1 << _LOWER_BITS, generator=generator)",
        ".zero_()",
        (f"{ROUNDED_NUMBERS}::test_the_mean_of_many_roundings_is_the_number",),
    ),
    Mutant(
        "random bits seeded without the update's number",
        f"{OPTIM}/rounded_update.py",
        "(self._seed, number, part.number, start // BLOCK_VALUES)",
        "(self._seed, part.number, start // BLOCK_VALUES)",
        (f"{ROUNDED}::test_update_parameter_block_and_seed_all_have_bits_of_their_own",),
    ),
    Mutant(
        "rehearsal updates weights",
        f"{OPTIM}/transaction.py",
        "                copy.parameter.copy_(copy.data)\n        return True",
        "                pass\n        return True",
        (REHEARSED,),
    ),
    Mutant(
        "rehearsal moves generators",
        f"{RUN}/rehearsal.py",
        "        restore_generators(generators)\n",
        "",
        (f"{REHEARSED}::test_weights_are_the_same_bit_for_bit_with_and_without",),
    ),
)
"""Of what is computed: the loss, its gradients, the updates, the schedule, the order of rows."""

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
        "padding is trained",
        f"{HF}/padded.py",
        "labels_BL = torch.full((len(documents), length), IGNORE_INDEX, dtype=torch.int64)",
        "labels_BL = torch.full((len(documents), length), pad_token_id, dtype=torch.int64)",
        ("tests/hf/test_own_loss.py::test_the_padded_path_gives_the_gradients_of_the_flat_one",),
    ),
    Mutant(
        "EOS target lost",
        f"{DATA}/encoding/encoder.py",
        "        encoded = TokenRows.from_targets(ids, is_target)\n",
        "        encoded = TokenRows.from_targets(ids, is_target)\n"
        "        encoded.labels[encoded.input_ids == self._tokenizer.eos_token_id] = -100\n",
        ("tests/data/test_encode.py::test_text_ends_with_the_end_of_text_token_once_and_all_of_it_is_trained",),
    ),
    Mutant(
        "completion one token late",
        f"{DATA}/encoding/encoder.py",
        "is_target.append([0] * start + rest)",
        "is_target.append([0] * (start + 1) + rest[1:])",
        ("tests/data/test_encode.py::test_a_completion_starts_where_the_tokens_part",),
    ),
    Mutant(
        "the prompt is trained too",
        f"{DATA}/encoding/encoder.py",
        "self._completion_only = settings.completion_only_loss is not False",
        "self._completion_only = settings.completion_only_loss is True",
        ("tests/data/test_encode.py::test_only_completions_are_trained_and_the_prompt_is_when_asked",),
    ),
    Mutant(
        "train: false ignored",
        f"{DATA}/targets/weights.py",
        'if message.get("train") is False:',
        "if False:",
        ("tests/data/test_weights.py::test_an_answer_of_weight_zero_is_no_target",),
    ),
    Mutant(
        "header trained",
        f"{DATA}/targets/attempt.py",
        "            start = len(prompt)\n",
        "            start = span.start\n",
        ("tests/data/test_targets.py::test_each_kind_of_template_is_proven_or_refused",),
    ),
    Mutant(
        "end of turn dropped",
        f"{DATA}/targets/turn_tokens.py",
        "marks[start : end + 1] = [turn.message + 1] * (end + 1 - start)",
        "marks[start:end] = [turn.message + 1] * (end - start)",
        ("tests/data/test_assistant.py::test_the_exact_tokens_of_the_answers_are_trained",),
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
        "unrolled answers trained with those before",
        f"{DATA}/targets/unroll.py",
        "prompt=before + body[:number], body=[message]",
        "prompt=before, body=body[: number + 1]",
        ("tests/data/test_target_options.py::test_unrolled_answers_are_trained_as_the_template_writes_them_last",),
    ),
    Mutant(
        "a filter that loses tags trusted",
        f"{DATA}/templates/provenance/environment.py",
        '        "attr",\n',
        '        "attr",\n        "indent",\n',
        ("tests/data/test_provenance.py::test_what_is_made_of_a_content_is_tagged_so",),
    ),
    Mutant(
        "a turn that has looked ahead taken as it is",
        f"{DATA}/templates/provenance/order.py",
        "    if any(progress.reach[number] >= count for number in skipped):\n        return None\n",
        "",
        ("tests/data/test_order.py::test_nothing_is_told_where_an_earlier_turn_may_have_looked_ahead",),
    ),
    Mutant(
        "cache ignores the template",
        f"{DATA}/encoding/keys.py",
        '        "chat_template": tokenizer.chat_template,',
        '        "chat_template": None,',
        ("tests/data/test_cache.py::test_whatever_it_depends_on_makes_another_entry",),
    ),
)
"""Of which tokens are trained."""

DURABILITY = (
    Mutant(
        "generator state not restored",
        f"{RUN}/train_loop.py",
        "self.data_loader.start_at(self._cursor, self._find_generators, stops=",
        "self.data_loader.start_at(self._cursor, lambda: None, stops=",
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "cursor off by one",
        f"{RUN}/data_loader.py",
        'skip = int(start["optimizer_batches"]) if',
        'skip = int(start["optimizer_batches"]) + 1 if',
        (resumed("test_a_stopped_run_ends_as_one_that_was_not[full]"),),
    ),
    Mutant(
        "scaler not restored",
        f"{RUN}/stepper.py",
        '            self._scaler.load_state_dict(dict(state["scaler"]))',
        "            pass",
        (resumed("test_the_scale_of_float16_goes_on"),),
    ),
    Mutant(
        "masters taken from the rounded weights",
        f"{RUN}/model_files.py",
        "return tensor is not None and is_there and tensor.dtype == self.dtypes[name]",
        "return tensor is not None and is_there",
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
        "what is replaced is deleted before the new one has its name",
        f"{RUN}/checkpoint.py",
        "        os.replace(target, replaced)\n",
        "        delete(target)\n        os.makedirs(replaced)\n",
        ("tests/run/test_checkpoint.py::test_a_rename_that_the_system_refuses_leaves_the_old_one_its_name",),
    ),
    Mutant(
        "steps alone order checkpoints",
        f"{RUN}/checkpoint.py",
        "latest if run is None else run, step_of(path))",
        "0, step_of(path))",
        ("tests/run/test_checkpoint.py::test_newer_is_a_matter_of_runs_first",),
    ),
    Mutant(
        "half a checkpoint left",
        f"{RUN}/checkpoints.py",
        "            shutil.rmtree(partial, ignore_errors=True)\n            raise\n        best = ",
        "            raise\n        best = ",
        ("tests/run/test_saving.py::test_whatever_stops_a_save_leaves_no_part_of_it",),
    ),
    Mutant(
        "half an update may be saved",
        f"{RUN}/train_loop.py",
        "        self.is_whole = False\n\n    def end_step",
        "        self.is_whole = True\n\n    def end_step",
        (resumed("test_a_defect_in_the_middle_of_an_update_saves_nothing"),),
    ),
    Mutant(
        "an optimizer's step does not wait for what is being written",
        f"{RUN}/stepper.py",
        "            self.before_step()\n",
        "",
        (resumed("test_an_update_waits_for_what_is_written_from_the_live_tensors"),),
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
        "partial gradient kept after a failure",
        f"{RUN}/stepper.py",
        "            updater.discard()\n            restore_generators(before)\n",
        "            restore_generators(before)\n",
        (f"{ANEW}[backward]",),
    ),
    Mutant(
        "a failed step begins anew with pieces that are done",
        f"{OPTIM}/transaction.py",
        "            self._done.update(piece)",
        "            pass",
        ("tests/run/test_out_of_memory.py::test_a_step_that_fails_halfway_reaches_each_parameter_once",),
    ),
    Mutant(
        "an interrupt in the middle of a step",
        f"{RUN}/interrupt.py",
        "        if self._is_held and self._pending is None and self._num_came() < 2:",
        "        if False:",
        ("tests/run/test_saving.py::test_ctrl_c_saves_whole_steps_and_is_raised_again",),
    ),
    Mutant(
        "a run folder is not locked",
        f"{RUN}/training.py",
        "            stack.enter_context(folder_lock.held(folder))",
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
)
"""Of what survives kills, failures, full disks and other runs."""

SECRETS = (
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
        "the token in an error",
        "src/sartor/report/hub.py",
        "        message = message.replace(secret, MASK)\n",
        "        pass\n",
        ("tests/report/test_hub.py::test_each_refusal_says_what_to_do_and_never_the_token",),
    ),
    Mutant(
        "a push takes what lies in the run folder",
        f"{HF}/hub.py",
        "    made = saving.save_anew(",
        "    made = staging.names_in(Path(args.output_dir)) | saving.save_anew(",
        ("tests/report/test_staging.py::TestTrainer::test_a_push_takes_what_this_run_has_written",),
    ),
    Mutant(
        "rows not escaped on the page",
        f"{DATA}/inspection/page.py",
        "autoescape=True",
        "autoescape=False",
        ("tests/data/inspection/test_page.py::test_nothing_of_a_row_becomes_an_element",),
    ),
)
"""Of what must not leave the machine, and what rows must not do."""

MUTANTS: tuple[Mutant, ...] = (*MATHEMATICS, *TARGETS, *DURABILITY, *SECRETS)
