"""How the program speaks: help, usage errors, streams, exit codes, mergekit's option names."""

import json
import os
import pty
import re
import subprocess
import unittest

from program import DEVICE, EXAMPLES, INPUT, IO, PROGRAM, SOURCE, TIES, USAGE, Case, ingot

COMMANDS = ("merge", "plan", "verify", "inspect", "diff", "completion", "bake", "adapter merge", "extract",
            "bench", "help", "methods", "explain")

METHODS = [method["name"] for method in json.loads(subprocess.run(
    [PROGRAM, "methods", "--json"], check=True, capture_output=True, text=True).stdout)["methods"]]
TYPES = ["linear", "cat", "svd", "ties", "ties_svd", "dare_linear", "dare_linear_svd", "dare_ties", "dare_ties_svd",
         "magnitude_prune", "magnitude_prune_svd"]


class Help(Case):
    def test_program_names_every_command(self):
        text = self.run_ok("--help").stdout
        for command in COMMANDS:
            self.assertRegex(text, rf"(?m)^  {command} ")

    def test_every_command_has_examples(self):
        for command in COMMANDS:
            text = self.run_ok(*command.split(), "--help").stdout
            self.assertIn("Examples:", text)
            self.assertRegex(text, rf"(?m)^  ingot {command}( |$)")

    def test_every_option_is_explained(self):
        for command in COMMANDS:
            text = self.run_ok(*command.split(), "--help").stdout
            for line in text.splitlines():
                if re.match(r"  -", line):
                    self.assertRegex(line, r"  -\S+.* {2,}\S|^  -\S+( \S+)*$", line)

    def pages(self):
        yield self.run_ok("--help").stdout
        for topic in ("", "options", "exit-codes", *COMMANDS):
            yield self.run_ok("help", *topic.split()).stdout
        yield self.run_ok("methods").stdout
        for method in METHODS + TYPES:
            yield self.run_ok("explain", method).stdout
        yield ingot().stderr

    def test_lines_fit_a_terminal(self):
        for page in self.pages():
            for line in page.splitlines():
                self.assertLessEqual(len(line), 80, line)

    def test_help_of_a_command_is_that_of_the_option(self):
        for command in COMMANDS:
            self.assertEqual(self.run_ok("help", *command.split()).stdout,
                             self.run_ok(*command.split(), "--help").stdout)

    def options(self, command):
        """Names, the word for the value and the text of every option on a page."""
        page = self.run_ok("help", *command.split()).stdout.split("\nValues:")[0]
        for match in re.finditer(r"^  (-[^\n]*(?:\n {10,}[^\n]*)*)", page, re.M):
            left, _, right = re.sub(r"\n +", "   ", match[1]).partition("  ")
            names, _, value = re.match(r"((?:-[\w-]+(?:, )?)+)( ?)(.*)", left).groups()
            yield names, value, " ".join(right.split())

    def test_every_value_has_a_default_or_is_required(self):
        count = 0
        for command in COMMANDS:
            for names, value, text in self.options(command):
                if value:
                    count += 1
                    self.assertRegex(text, r"\((default|required)|in place of|default:", f"{command} {names}")
        self.assertGreater(count, 40)

    def test_units_of_values_are_explained(self):
        for command in COMMANDS:
            page = self.run_ok("help", *command.split()).stdout
            for word in ("SIZE", "SHARE"):
                if re.search(rf"^  -.* {word}\b", page, re.M):
                    self.assertRegex(page, rf"(?m)^  {word} +a number")

    def test_usage_marks_what_may_be_left_out_and_what_repeats(self):
        for command, usage in (("merge", "ingot merge [options] RECIPE OUT"), ("plan", "RECIPE [OUT]"),
                               ("bake", "BASE ADAPTER... -o OUT"), ("extract", "BASE TUNED OUT"),
                               ("adapter merge", "[ADAPTER...] -o OUT"), ("inspect", "PATH...")):
            self.assertIn(usage, self.run_ok("help", *command.split()).stdout)

    def test_unknown_topic_names_the_nearest(self):
        self.assertIn("help merge", self.run_fails(USAGE, "help", "mrege").stderr)

    def test_version_is_one_line(self):
        for word in ("--version", "-V"):
            self.assertRegex(self.run_ok(word).stdout, r"\Aingot \d+\.\d+\.\d+\n\Z")


class Methods(Case):
    def test_the_list_is_that_of_the_program(self):
        """What 'ingot methods' lists, recipes and --type accept, and nothing else."""
        models, adapters = self.run_ok("methods").stdout.split("Types of")
        names = re.findall(r"^  (\w+) ", models, re.M)
        types = re.findall(r"^  (\w+) ", adapters, re.M)
        self.assertEqual(sorted(names), sorted(METHODS))
        self.assertEqual(sorted(types), sorted(TYPES))
        unknown = self.write("r.yml", TIES.replace("merge_method: ties", "merge_method: xyzzy"))
        stderr = self.run_fails(USAGE, "plan", unknown, "--root", EXAMPLES).stderr
        told = re.search(r"the methods are (.*)", stderr)[1]
        self.assertEqual(sorted(re.findall(r"\w+", told)), sorted(names))
        lora = EXAMPLES / "adapters" / "c-lora"
        stderr = self.run_fails(USAGE, "adapter", "merge", lora, lora, "--type", "xyzzy", "-o",
                                self.folder / "out").stderr
        self.assertEqual(sorted(set(re.findall(r"\w+", re.search(r"there are (.*)", stderr)[1]))), sorted(types))

    def test_explanations_have_every_part(self):
        for method in METHODS:
            text = self.run_ok("explain", method).stdout
            for part in ("Formula:", "Models:", "Parameters:", "When to use:", "Example:"):
                self.assertIn(f"\n{part}\n", text, method)
        for method in TYPES:
            text = self.run_ok("explain", method).stdout
            for part in ("Formula:", "Options:", "When to use:", "Example:"):
                self.assertIn(f"\n{part}\n", text, method)
        self.assertIn("arxiv.org/abs/2306.01708", self.run_ok("explain", "ties").stdout)

    def test_parameters_have_range_and_default(self):
        text = " ".join(self.run_ok("explain", "ties").stdout.split())
        for part in ("density share of the elements of the change that are kept (for each model; from 0 to 1; default 1)",
                     "weight factor of the model (for each model; any number; required)",
                     "normalize divide by the sum of the weights (true or false; default true)"):
            self.assertIn(part, text)

    def test_examples_of_models_run(self):
        """The recipe of every explanation, with the example models for its names."""
        for method in METHODS:
            recipe = self.run_ok("explain", method).stdout.split("\nExample:\n")[1].split("\n\n")[0]
            recipe = re.sub(r"^  ", "", recipe, flags=re.M)
            recipe = re.sub(r"model: (a|b|c|base)\b", lambda m: "model: models/" + {"a": "python", "b": "c", "c": "prose"}.get(m[1], "base"),
                            recipe)
            recipe = recipe.replace("[0, 16]", "[0, 1]").replace("[8, 24]", "[0, 2]")
            with self.subTest(method=method):
                self.run_ok("plan", self.write("r.yml", recipe), "--root", EXAMPLES)

    def test_unknown_method_names_the_nearest(self):
        self.assertIn("'ties'", self.run_fails(USAGE, "explain", "tise").stderr)
        self.assertIn("ingot methods", self.run_fails(USAGE, "explain", "xyzzy").stderr)
        self.assertIn("did you mean 'dare_linear' or 'dare_ties'", self.run_fails(USAGE, "explain", "dare").stderr)
        self.assertIn("of mergekit that ingot does not have yet; the nearest one is 'dare_ties'",
                      self.run_fails(USAGE, "explain", "della").stderr)


class ExitCodes(Case):
    def test_help_manual_and_readme_have_every_code(self):
        page = self.run_ok("help", "exit-codes").stdout
        codes = re.findall(r"^  (\d+) ", page, re.M)
        self.assertEqual(codes, ["0", "1", "2", "3", "4", "5", "6", "129", "130", "143"])
        manual = self.run_ok("manual").stdout.split(".SH EXIT STATUS")[1]
        readme = (SOURCE / "README.md").read_text().split("## Exit codes")[1].split("\n## ")[0]
        for code in codes:
            self.assertIn(f"\\fB{code}\\fR", manual)
            self.assertRegex(readme, rf"(?m)^\| [\d, ]*\b{code}\b")


class Usage(Case):
    def test_no_command_shows_what_there_is(self):
        done = self.run_fails(USAGE)
        for command in ("plan", "merge", "bake", "adapter merge", "extract", "verify"):
            self.assertRegex(done.stderr, rf"(?m)^  ingot {command} ")
        self.assertLess(len(done.stderr.splitlines()), 20)

    def test_unknown_command_names_the_nearest(self):
        for word, meant in (("merg", "merge"), ("mrege", "merge"), ("inpsect", "inspect"),
                            ("add_weighted_adapter", "adapter merge"), ("merge-and-unload", "bake"),
                            ("mergekit-extract-lora", "extract"), ("compare", "diff"), ("check", "verify")):
            self.assertIn(f"'ingot {meant}'", self.run_fails(USAGE, word).stderr)
        self.assertIn("'ingot adapter merge'", self.run_fails(USAGE, "adapter", "mrege", "a").stderr)

    def test_command_words_are_judged_before_options(self):
        for words, told in (("bkae b a -o x", "no command 'bkae'; did you mean 'ingot bake'?"),
                            ("bkae merge a --rank 4", "no command 'bkae'; did you mean 'ingot bake'?"),
                            ("adapters merge a b -o x", "no command 'adapters'; use 'ingot adapter merge'"),
                            ("adapter mrege a --type ties -o x",
                             "no command 'adapter mrege'; did you mean 'ingot adapter merge'?"),
                            ("adapter xyzzy a -o x", "no command 'adapter xyzzy'; there is 'ingot adapter merge'"),
                            ("help adapter mrege",
                             "no command 'adapter mrege'; did you mean 'ingot help adapter merge'?"),
                            ("help bkae", "did you mean 'ingot help bake'?"),
                            ("help optoins", "did you mean 'ingot help options'?"),
                            ("help merge xyzzy", "no command 'merge xyzzy'")):
            with self.subTest(words=words):
                self.assertIn(told, self.run_fails(USAGE, *words.split()).stderr.splitlines()[0])

    def test_options_of_other_programs_are_answered_with_ours(self):
        for words, ours in (
                ("adapter merge a b --weights 1", "style:0.7"),
                ("adapter merge a b --combination_type ties", "--type"),
                ("adapter merge a b --combination-type=ties", "--type"),
                ("adapter merge a b --svd_rank 4", "--rank"),
                ("adapter merge a b --majority_sign_method total", "--majority-sign"),
                ("bake a b --base_model x", "BASE"), ("bake a b --safe_merge", "not finite"),
                ("extract a b --max-rank 8", "--rank"), ("extract a b --out-path x", "-o OUT"),
                ("merge a --output b", "-o OUT"), ("merge a --output_dir b", "-o OUT"),
                ("merge a b --overwrite", "--force"), ("bake a b -y", "--force"),
                ("merge a b --max_shard_size 5GB", "--shard-size"), ("merge a b --gpu", "--device"),
                ("merge a b --bf16", "--dtype bfloat16"), ("merge a b --torch_dtype bf16", "--dtype"),
                ("verify a --num-workers 4", "--threads"), ("merge a b --weights 1", "recipe")):
            with self.subTest(words=words):
                stderr = self.run_fails(USAGE, *words.split()).stderr
                self.assertRegex(stderr, r"unknown option '-\S+'")
                self.assertIn(ours, stderr.splitlines()[0])

    def test_the_page_of_foreign_options_is_true(self):
        """Those said to be accepted are, of the others each gets the answer that the page has."""
        page = self.run_ok("help", "options").stdout
        seen = 0
        for head, rows in re.findall(r"^\w+ \((any command|ingot [\w ,]+)\):\n((?:  .*\n)+)", page, re.M):
            commands = ["merge"] if head == "any command" else head.removeprefix("ingot ").split(", ")
            for names, answer in re.findall(r"((?:^  -.*\n)(?:^  \S.*\n)*)((?:^      \S.*\n)+)", rows, re.M):
                answer = " ".join(answer.split())
                if answer.startswith("accepted"):
                    continue  # class Mergekit
                for name in names.replace("\n", " ").split():
                    for command in commands:
                        words = ["adapter", "merge"] if command == "adapter" else [command]
                        done = ingot(*words, "a", "b", name.strip(","))
                        self.assertEqual(done.returncode, USAGE, f"{command} {name}")
                        self.assertIn(answer, done.stderr, f"{command} {name}")
                        seen += 1
        self.assertGreater(seen, 200)

    def test_messages_about_a_recipe_of_options_name_the_options(self):
        base, tuned = EXAMPLES / "models" / "base", EXAMPLES / "models" / "c"
        lora, other, out = EXAMPLES / "adapters" / "c-lora", EXAMPLES / "adapters" / "prose-lora", self.folder / "out"
        merge = ["adapter", "merge", lora, other, "-o", out]
        for words, told in (
                (["extract", base, tuned, "-o", out], "give one of --rank N, --rank auto with --energy, and --bytes"),
                (["extract", base, tuned, "--rank", "auto", "-o", out],
                 "--rank auto and --energy go together, for example --energy 0.9"),
                (["extract", base, tuned, "--rank", "2", "--for", "vlm", "-o", out],
                 "--for is one of peft, vllm, llama.cpp, not 'vlm'"),
                (["extract", base, tuned, "--rank", "2", "--whole-tensors", "x", "-o", out],
                 "--whole-tensors is one of save, skip, not 'x'"),
                ([*merge, "--rank", "auto"], "--rank changes nothing for --type 'cat'; remove it"),
                ([*merge, "--compat", "x"], "--compat is one of svd-scaling-twice, ia3-plain-sum, not 'x'"),
                ([*merge, "--type", "ties", "--density", "x"], "--density takes a number, not 'x'"),
                ([*merge, "--type", "svd", "--rank", "auto"], "--rank auto needs --energy, for example --energy 0.99"),
                (["bake", lora, base, "-o", out],
                 f"{lora} is an adapter, and a model is expected here: a base stands first, its adapters behind it "
                 f"(while reading model '{lora}+{base}')")):
            with self.subTest(told=told):
                self.assertEqual(self.run_fails(None, *words).stderr, f"ingot: error: {told}\n")
        stderr = self.run_ok("bake", base, lora, lora, "-o", out).stderr
        self.assertEqual(stderr, f"ingot: warning: adapter '{lora}' is listed 2 times and counts each time\n")

    def test_values_that_nobody_means_are_told(self):
        recipe = self.write("r.yml", TIES)
        plan = ["plan", recipe, "--root", EXAMPLES]
        self.assertIn("5GB", self.run_fails(USAGE, *plan, "--shard-size", "5").stderr)
        self.assertIn("more than the machine has", self.run_ok(*plan, "--memory", "99999TB").stderr)
        self.assertIn("--dry-run", self.run_fails(USAGE, "merge", recipe, self.folder / "out", "--tensors").stderr)
        for dtype in ("float64", "bfloat"):
            self.assertIn(f"--dtype", self.run_fails(USAGE, *plan, "--dtype", dtype).stderr)
        for device in ("cudax", "cuda:", "cuda:0,", "cuda:x"):
            self.assertIn("cuda:N,M", self.run_fails(USAGE, *plan, "--device", device).stderr)

    def test_paths_that_are_not_there_say_what_is_meant(self):
        self.write("recipe.yml", "x")
        (self.folder / "out").mkdir()
        self.write("out/ingot.json", "{}")
        (self.folder / "trainer" / "checkpoint-20").mkdir(parents=True)
        (self.folder / "trainer" / "checkpoint-100").mkdir()
        for words, code, told in (
                ("plan recpie.yml", INPUT, "there is no recipe recpie.yml; did you mean 'recipe.yml'?"),
                ("plan .", USAGE, ". is a folder, and a recipe is a YAML file: name one, as ./recipe.yml"),
                ("merge . recipe.yml", USAGE, ". is a folder, and recipe.yml a file: the recipe comes first, OUT behind it"),
                ("recipe.yml out", USAGE, "there is no command 'recipe.yml'; to merge by that recipe: 'ingot merge recipe.yml OUT'"),
                ("verify otu", INPUT, "there is no folder otu; did you mean 'out'?"),
                ("verify nowhere", INPUT, "there is no folder nowhere"),
                ("verify out/ingot.json", INPUT, "is a file: name the folder that ingot wrote, as in 'ingot verify out'"),
                ("inspect trainer", INPUT, "trainer holds checkpoints of a training run: name one, as in "
                                           "trainer/checkpoint-100")):
            with self.subTest(words=words):
                self.assertIn(told + "\n", self.run_fails(code, *words.split(), cwd=self.folder).stderr)

    def test_an_option_of_another_command_names_it(self):
        self.assertIn("'ingot verify'", self.run_fails(USAGE, "merge", "a", "b", "--outputs-only").stderr)

    def test_every_root_in_a_message_is_an_option(self):
        for words in (["inspect", "gone"], ["diff", "gone", "gone"]):
            self.assertIn("--root", self.run_fails(INPUT, *words).stderr)
            self.assertIn("--root", self.run_ok("help", words[0]).stdout)
        self.run_fails(1, "diff", "models/base", "models/c", "-q", "--root", EXAMPLES)

    def test_unknown_option_names_the_nearest(self):
        stderr = self.run_fails(USAGE, "merge", "r.yml", "out", "--shardsize", "5GB").stderr
        self.assertIn("--shard-size", stderr)
        self.assertIn("--shardsize", stderr)

    def test_missing_argument_is_named(self):
        self.assertIn("OUT", self.run_fails(USAGE, "merge", "recipe.yml").stderr)

    def test_bad_values_are_refused_before_any_work(self):
        recipe = self.write("recipe.yml", "nonsense")
        out = self.folder / "out"
        for words in (["--memory", "1G"], ["--memory", "lots"], ["--threads", "-1"], ["--threads", "x"],
                      ["--seed", "-3"], ["--shard-size", "5B"], ["--out-shard-size", "5GB"],
                      ["--storage", "tape"], ["--device", "tpu"]):
            with self.subTest(words=words):
                self.run_fails(USAGE, "merge", recipe, out, *words)
                self.assertFalse(out.exists())

    def test_missing_recipe_is_named(self):
        done = self.run_fails(INPUT, "plan", self.folder / "absent.yml")
        self.assertIn("absent.yml", done.stderr)

    def test_errors_leave_stdout_to_data(self):
        self.assertEqual(self.run_fails(USAGE, "merge", "--nonsense").stdout, "")


class Out(Case):
    """OUT as an argument and by -o, in every command that writes."""
    LORA = EXAMPLES / "adapters" / "c-lora"
    BASE = EXAMPLES / "models" / "base"

    def forms(self):
        recipe = self.write("recipe.yml", TIES)
        yield "merge", recipe, "--root", EXAMPLES
        yield "bake", self.BASE, self.LORA
        yield "adapter", "merge", self.LORA, self.LORA
        yield "extract", self.BASE, EXAMPLES / "models" / "chat", "--rank", "2"

    def test_both_ways_write_the_same(self):
        for number, words in enumerate(self.forms()):
            with self.subTest(words=words[:2]):
                one, two = self.folder / f"a{number}", self.folder / f"b{number}"
                self.run_ok(*words, "-o", one)
                self.run_ok(*words, two)
                self.assertEqual((one / "model.safetensors").read_bytes() if (one / "model.safetensors").exists()
                                 else (one / "adapter_model.safetensors").read_bytes(),
                                 (two / "model.safetensors").read_bytes() if (two / "model.safetensors").exists()
                                 else (two / "adapter_model.safetensors").read_bytes())

    def test_out_that_is_missing_is_said(self):
        for words in self.forms():
            self.assertIn("OUT is missing", self.run_fails(USAGE, *words).stderr)

    def test_an_adapter_is_never_taken_for_out(self):
        for last in (self.LORA, f"{self.LORA}:0.5", "org/name@main"):
            done = self.run_fails(USAGE, "adapter", "merge", self.LORA, last, "--force")
            self.assertIn("OUT is missing", done.stderr)
        cache = self.folder / "hub" / "models--org--style" / "snapshots" / ("a" * 40)
        cache.mkdir(parents=True)
        (self.folder / "hub" / "models--org--style" / "refs").mkdir()
        (self.folder / "hub" / "models--org--style" / "refs" / "main").write_text("a" * 40)
        (cache / "adapter_config.json").write_text("{}")
        done = self.run_fails(USAGE, "bake", self.BASE, self.LORA, "org/style",
                              env={"HF_HUB_CACHE": str(self.folder / "hub")}, cwd=self.folder)
        self.assertIn("OUT is missing", done.stderr)
        self.assertFalse((self.folder / "org").exists())

    def test_two_outs_are_refused(self):
        done = self.run_fails(USAGE, "merge", "r.yml", "a", "-o", "b")
        self.assertIn("twice", done.stderr)


class Device(Case):
    @unittest.skipIf(os.path.exists("/dev/nvidiactl"), "this machine may have CUDA")
    def test_cuda_that_cannot_be_had_is_refused_in_one_sentence(self):
        recipe = self.write("recipe.yml", TIES)
        for words in (["--device", "cuda"], ["--device", "cuda:1"], ["--cuda"], ["--gpu-rich"]):
            with self.subTest(words=words):
                done = self.run_fails(DEVICE, "merge", recipe, self.folder / "out", "--root", EXAMPLES, *words)
                self.assertEqual(len(done.stderr.splitlines()), 1)
                self.assertIn("--device cpu", done.stderr)

    def test_device_beats_cuda_as_in_mergekit(self):
        self.merge(TIES, "out", "--cuda", "--device", "cpu")

    def test_auto_says_what_it_chose(self):
        self.assertIn("CPU", self.merge(TIES, "out", "--device", "auto").stderr)

    def test_isa_that_is_no_isa_is_refused(self):
        recipe = self.write("recipe.yml", TIES)
        done = self.run_fails(USAGE, "merge", recipe, self.folder / "out", "--root", EXAMPLES, env={"INGOT_ISA": "v9"})
        self.assertIn("v3", done.stderr)


class Mergekit(Case):
    """Every option of mergekit-yaml 0.1.5 is understood."""

    MEANT = ["--allow-crimes", "--no-allow-crimes", "--unsafe-truncate-embeddings",
             "--no-unsafe-truncate-embeddings", "--copy-tokenizer", "--no-copy-tokenizer",
             "--write-model-card", "--no-write-model-card", "--safe-serialization", "--no-cuda",
             "--no-gpu-rich", "--out-shard-size 5B", "--random-seed 7", "--num-threads 1", "-j 1",
             "--device cpu", "--quiet", "--no-quiet", "-v", "--verbose"]
    MOOT = ["--transformers-cache x", "--lora-merge-cache x", "--lora-merge-dtype float16",
            "--low-cpu-memory", "--no-low-cpu-memory", "--clone-tensors", "--no-clone-tensors",
            "--trust-remote-code", "--no-trust-remote-code", "--lazy-unpickle", "--no-lazy-unpickle",
            "--read-to-gpu", "--no-read-to-gpu", "--multi-gpu", "--no-multi-gpu", "--async-write",
            "--no-async-write", "--write-threads 2"]

    def plan(self, words):
        recipe = self.write("recipe.yml", TIES)
        return self.run_ok("plan", recipe, "--root", EXAMPLES, *words.split())

    def test_names_with_a_meaning_pass_in_silence(self):
        for words in self.MEANT:
            with self.subTest(words=words):
                self.assertEqual(self.plan(words).stderr, "")

    def test_names_without_one_are_answered(self):
        for words in self.MOOT:
            with self.subTest(words=words):
                stderr = self.plan(words).stderr
                self.assertEqual(len(stderr.splitlines()), 1, stderr)
                self.assertIn("note: " + words.split()[0].replace("--no-", "--"), stderr)
                self.assertIn("no effect", stderr)

    def test_quiet_silences_the_answers(self):
        self.assertEqual(self.plan("--quiet --lazy-unpickle").stderr, "")

    def test_pickle_output_is_refused(self):
        done = self.run_fails(USAGE, "plan", "r.yml", "--no-safe-serialization")
        self.assertIn("safetensors", done.stderr)

    def test_shard_sizes_mean_the_same(self):
        recipe = self.write("recipe.yml", TIES)
        ours = self.json("plan", recipe, "--root", EXAMPLES, "--shard-size", "100kB")
        theirs = self.json("plan", recipe, "--root", EXAMPLES, "--out-shard-size", "100k")
        self.assertGreater(len(ours["shards"]), 1)
        self.assertEqual(ours["shards"], theirs["shards"])

    def test_both_shard_sizes_at_once_are_refused(self):
        self.run_fails(USAGE, "plan", "r.yml", "--shard-size", "1GB", "--out-shard-size", "1B")


class Streams(Case):
    def terminal(self, words, env):
        """What a terminal on stderr gets to see."""
        master, slave = pty.openpty()
        plain = {k: v for k, v in os.environ.items() if k != "NO_COLOR"}
        process = subprocess.Popen([PROGRAM, *words], stdout=subprocess.DEVNULL, stderr=slave,
                                   env={**plain, "TERM": "xterm", **env})
        os.close(slave)
        seen = b""
        while True:
            try:
                block = os.read(master, 4096)
            except OSError:  # the other end closed
                break
            if not block:
                break
            seen += block
        process.wait()
        os.close(master)
        return seen.decode()

    def test_colours_on_a_terminal_only(self):
        words = ["merge", "--nonsense"]
        self.assertIn("\x1b[31m", self.terminal(words, {}))
        self.assertNotIn("\x1b", self.terminal(words, {"NO_COLOR": "1"}))
        self.assertNotIn("\x1b", self.terminal(words, {"TERM": "dumb"}))
        self.assertNotIn("\x1b", ingot(*words).stderr)

    def test_full_disk_on_stdout_is_an_error(self):
        if not os.path.exists("/dev/full"):
            self.skipTest("no /dev/full")
        with open("/dev/full", "w") as full:
            done = subprocess.run([PROGRAM, "completion", "bash"], stdout=full, stderr=subprocess.PIPE,
                                  text=True)
        self.assertEqual(done.returncode, IO)
        self.assertIn("standard output", done.stderr)

    def test_names_from_files_cannot_drive_the_terminal(self):
        done = self.run_fails(INPUT, "inspect", "no\x1b[31msuch")
        self.assertNotIn("\x1b", done.stderr)


if __name__ == "__main__":
    unittest.main()
