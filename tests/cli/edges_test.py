"""The edges of the system: descriptors, limits, signals, odd names, files that are none."""

import json
import os
import pathlib
import resource
import shutil
import signal
import socket
import subprocess
import time
import unittest

from program import BUILD, DONE, EXAMPLES, INPUT, IO, PROGRAM, TIES, USAGE, Case, bytes_of, ingot

BASE, CODE, CHAT = (EXAMPLES / "models" / name for name in ("base", "c", "chat"))
# What must not reach a terminal: C0, DEL, C1, marks, overrides and isolates of direction, separators
# of lines, what has no width; and bytes that are no UTF-8.
ODD = ["\x07", "\x1b", "\x7f", "\x85", "\x9b", "\u061c", "\u200b", "\u200e", "\u200f", "\u2028",
       "\u2029", "\u202a", "\u202e", "\u2066", "\u2069", "\ufeff"]


def tensors(path):
    """Header and data of a safetensors file."""
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    return json.loads(data[8:8 + size]), data[8 + size:]


def write_tensors(path, header, data):
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + data)


class Edges(Case):
    def copy(self, source, name):
        return pathlib.Path(shutil.copytree(source, self.folder / name))

    def recipe(self, *models, method="linear", **more):
        rest = "".join(f"{key}: {json.dumps(value)}\n" for key, value in more.items())
        lines = "".join(f"- model: {json.dumps(str(model))}\n  parameters: {{weight: 1}}\n"
                        for model in models)
        return self.write("r.yml", f"merge_method: {method}\n{rest}models:\n{lines}")

    def merged(self, *models, code=DONE, **more):
        shutil.rmtree(self.folder / "out", ignore_errors=True)
        done = ingot("merge", self.recipe(*models, **more), self.folder / "out")
        self.assertEqual(done.returncode, code, done.stderr)
        if code != DONE:
            self.assertFalse((self.folder / "out").exists())
        return done


class Descriptors(Edges):
    def test_any_of_the_standard_ones_may_be_closed(self):
        recipe = self.write("recipe.yml", TIES)
        self.run_ok("merge", recipe, self.folder / "whole", "--root", EXAMPLES)
        expected = (self.folder / "whole/model.safetensors").read_bytes()
        for closed in range(1, 8):
            with self.subTest(closed=closed):
                out = self.folder / f"out{closed}"

                def close(closed=closed):
                    for number in range(3):
                        if closed >> number & 1:
                            os.close(number)

                done = subprocess.run([PROGRAM, "merge", recipe, out, "--root", EXAMPLES],
                                      stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                                      stderr=subprocess.DEVNULL, preexec_fn=close, timeout=120)
                self.assertEqual(done.returncode, DONE)
                self.assertEqual((out / "model.safetensors").read_bytes(), expected)

    def test_no_file_gets_the_number_of_a_standard_one(self):
        # The program holds its input open while it waits for a pipe's other end.
        script = f'exec "$0" inspect {BASE} 0<&- 2>&- | cat'
        done = subprocess.run(["sh", "-c", script, PROGRAM], capture_output=True, text=True,
                              timeout=120)
        self.assertEqual(done.stdout, self.run_ok("inspect", BASE).stdout)

    def test_a_reader_that_leaves_is_no_error(self):
        for command in (["plan", str(self.recipe(BASE, CODE)), "--tensors"], ["--help"]):
            done = subprocess.run(["sh", "-c", '"$0" "$@" 2>err; echo $? >code', PROGRAM, *command],
                                  stdout=self.gone(), cwd=self.folder, timeout=120)
            self.assertEqual(done.returncode, 0)
            self.assertEqual((self.folder / "err").read_text(), "")
            self.assertEqual((self.folder / "code").read_text(), "0\n")

    def test_a_reader_of_messages_that_leaves_does_not_stop_a_merge(self):
        recipe = self.write("recipe.yml", TIES)
        done = subprocess.run([PROGRAM, "merge", recipe, self.folder / "out", "--root", EXAMPLES,
                               "--lazy-unpickle"], stdout=self.gone(), stderr=self.gone(), timeout=120)
        self.assertEqual(done.returncode, DONE)
        self.run_ok("verify", self.folder / "out", "--root", EXAMPLES)

    def gone(self):
        """A pipe nobody reads any more."""
        read, write = os.pipe()
        os.close(read)
        self.addCleanup(os.close, write)
        return write

    @unittest.skipUnless(os.path.exists("/dev/full"), "no /dev/full")
    def test_a_full_disk_behind_stdout_is_said(self):
        for words in (["--help"], ["--version"], ["merge", "--help"], ["inspect", BASE],
                      ["inspect", BASE, "--json"], ["diff", BASE, CODE]):
            with self.subTest(words=words), open("/dev/full", "w") as full:
                done = subprocess.run([PROGRAM, *map(str, words)], stdout=full,
                                      stderr=subprocess.PIPE, text=True, timeout=120)
                self.assertEqual(done.returncode, IO)
                self.assertIn("standard output", done.stderr)
        with open("/dev/full", "w") as full:
            done = subprocess.run([PROGRAM, "merge", self.recipe(BASE, CODE), self.folder / "out"],
                                  stdout=full, stderr=subprocess.PIPE, text=True, timeout=120)
        self.assertEqual(done.returncode, IO)
        self.assertIn("the output is complete", done.stderr)
        self.run_ok("verify", self.folder / "out")


class Limits(Edges):
    def limited(self, *words, user=False, **limits):
        def limit():
            for name, value in limits.items():
                resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
            if user and os.getuid() == 0:  # whom no limit on processes binds
                os.setgid(12345)
                os.setuid(12345)
        # The search for leaks starts a thread at the end.
        options = os.environ.get("ASAN_OPTIONS", "") + ":detect_leaks=0"
        return ingot(*words, preexec_fn=limit, env={**os.environ, "ASAN_OPTIONS": options})

    def test_files_beyond_a_limit_on_their_size_are_an_error(self):
        recipe = self.write("recipe.yml", TIES)
        done = self.limited("merge", recipe, self.folder / "out", "--root", EXAMPLES, FSIZE=100_000)
        self.assertEqual(done.returncode, IO, done.stderr)
        self.assertIn("too large", done.stderr)
        self.assertFalse((self.folder / "out").exists())

    def test_threads_beyond_a_limit_on_processes_end_in_order(self):
        recipe = self.write("recipe.yml", TIES)
        self.folder.chmod(0o777)
        if os.getuid() == 0 and subprocess.run(
                [PROGRAM, "--version"], capture_output=True, user=12345, group=12345).returncode != 0:
            self.skipTest("another user cannot run the program here")
        for most in (0, 1, 2, 3, 5, 9):
            out = self.folder / f"out{most}"
            done = self.limited("merge", recipe, out, "--root", EXAMPLES, "-j", "8", user=True, NPROC=most)
            with self.subTest(most=most):
                self.assertIn(done.returncode, (DONE, IO), done.stderr)
                self.assertEqual(out.exists(), done.returncode == DONE)
                if done.returncode == IO:
                    self.assertIn("cannot start a thread", done.stderr)

    def test_little_address_space_ends_in_order(self):
        if "ASAN_OPTIONS" in os.environ or "TSAN_OPTIONS" in os.environ:
            self.skipTest("sanitizers need terabytes of it")
        recipe = self.write("recipe.yml", TIES)
        for mebi in (96, 128, 192, 256, 384, 512, 768, 1024, 1536):
            out = self.folder / f"out{mebi}"
            done = self.limited("merge", recipe, out, "--root", EXAMPLES, "-j", "2", AS=mebi << 20)
            with self.subTest(mebi=mebi):
                if done.returncode in (1, 127) and "shared" in done.stderr:
                    continue  # not even its libraries could be loaded
                self.assertIn(done.returncode, (DONE, IO), done.stderr)
                self.assertEqual(out.exists(), done.returncode == DONE)

    def test_a_hang_up_stops_a_merge_like_any_signal(self):
        source = json.dumps(str(BASE))
        recipe = self.write("long.yml", "merge_method: passthrough\ndtype: float32\nslices:\n" +
                            f"- sources: [{{model: {source}, layer_range: [0, 2]}}]\n" * 300)
        for number in (signal.SIGHUP, signal.SIGTERM):
            running = subprocess.Popen([PROGRAM, "merge", recipe, self.folder / "out", "-j", "1"],
                                       stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
            partial = self.folder / ".out.partial"
            while not partial.exists() and running.poll() is None:
                time.sleep(0.001)
            running.send_signal(number)
            _, stderr = running.communicate(timeout=120)
            self.assertIn(running.returncode, (DONE, -number))
            if running.returncode != DONE:
                self.assertIn("--resume", stderr)
                self.assertFalse((self.folder / "out").exists())
                self.run_ok("merge", recipe, self.folder / "out", "-j", "1", "--resume")
            shutil.rmtree(self.folder / "out")


class Names(Edges):
    def test_out_that_can_be_no_folder_is_refused_before_any_work(self):
        recipe = self.write("recipe.yml", "nonsense")  # which would be an error of its own
        inside = self.folder / "inside"
        inside.mkdir()
        for out in ("", ".", "..", "/", "//", "./", "../", "out/.", "out/..", "x" * 248, "x" * 300,
                    "a/" * 2100 + "b", b"\xff\xfe", "a\x1bb", "a\u202eb", "a\nb"):
            for words in (["merge", recipe, out], ["bake", BASE, CODE, "-o", out],
                          ["plan", recipe, out], ["extract", BASE, CODE, "-o", out]):
                with self.subTest(out=out, command=words[0]):
                    done = subprocess.run([PROGRAM, *[w if isinstance(w, bytes) else str(w) for w in words]],
                                          capture_output=True, text=True, cwd=inside, timeout=120)
                    self.assertEqual(done.returncode, USAGE, done.stderr)
                    self.assertEqual(len(done.stderr.splitlines()), 1, done.stderr)
                    self.assertIn("OUT", done.stderr)
                    self.assertLess(len(done.stderr), 500)
        self.assertEqual(list(inside.iterdir()), [])

    def test_slashes_after_out_mean_nothing(self):
        self.merge(TIES, "out///")
        self.assertTrue((self.folder / "out/ingot.json").exists())

    def test_odd_characters_of_tensors_are_escaped_everywhere(self):
        model = self.copy(BASE, "model")
        header, data = tensors(model / "model.safetensors")
        name = "a" + "".join(c for c in ODD if c not in "\x07\x1b\x7f") + "b"
        header[name] = {"dtype": "F32", "shape": [1], "data_offsets": [len(data), len(data) + 4]}
        write_tensors(model / "model.safetensors", header, data + bytes(4))
        out = self.folder / "out"
        for words in (["inspect", model], ["inspect", model, "--tensor", name], ["diff", BASE, model],
                      ["diff", model, model], ["plan", self.recipe(model, model), "--tensors"],
                      ["merge", self.recipe(model, model), out], ["verify", out]):
            for more in ([], ["--json"]):
                with self.subTest(words=words, more=more):
                    if words[0] == "merge":
                        shutil.rmtree(out, ignore_errors=True)
                    done = ingot(*words, *more)
                    for odd in ODD:
                        self.assertNotIn(odd, done.stdout + done.stderr)
                    if more and done.stdout:
                        json.loads(done.stdout)
        self.assertIn("\\u009b", ingot("inspect", model).stdout)

    def test_odd_characters_of_arguments_and_recipes_are_escaped_everywhere(self):
        odd = "no" + "".join(ODD) + "such"
        recipe = self.write("odd.yml", "merge_method: linear\nmodels:\n- model: "
                            f"{json.dumps(odd)}\n  parameters: {{weight: 1}}\n")
        for words in (["inspect", odd], ["inspect", b"no\x9bsuch\xff"], ["merge", odd, "x"], ["verify", odd],
                      ["plan", recipe], ["merge", recipe, self.folder / "o"], ["diff", odd, odd],
                      ["merge", "--" + odd], [odd], ["bake", odd, odd, "-o", self.folder / "o"],
                      ["merge", recipe, "x", "--memory", odd], ["merge", recipe, "x", "--device", odd]):
            with self.subTest(words=words):
                done = subprocess.run([PROGRAM, *[w if isinstance(w, bytes) else str(w) for w in words]],
                                      capture_output=True, timeout=120)
                self.assertNotEqual(done.returncode, DONE)
                text = (done.stdout + done.stderr).decode()  # raises for what is no UTF-8
                for character in ODD:
                    self.assertNotIn(character, text)

    def test_a_name_cannot_act_in_the_model_card(self):
        name = "<script>alert(1)</script>|`x`[y](z)\u202e&"
        model = self.copy(BASE, name.replace("/", "_"))
        self.merged(model, CODE)
        card = (self.folder / "out/README.md").read_text()
        table = card.split("## Recipe")[0]
        for raw in ("<script", "\u202e", "|`x`[y]"):
            self.assertNotIn(raw, table)
        self.assertNotIn("\u202e", card)
        self.assertIn("&lt;script>", table)

    def test_numbers_of_options_are_read_in_full_or_refused(self):
        recipe = self.recipe(BASE, CODE)
        for option, values in (("--seed", ["-1", "18446744073709551616", "0x10", "010", "1e3", "1.5", ""]),
                               ("--random-seed", ["-1", "0x10"]), ("-j", ["0x4", "010", "-1", "1.5", "1025"]),
                               ("--num-threads", ["0x4", "99999999999999999999"]),
                               ("--memory", ["1G", "-1", "0x10MiB", "0", "99999999TB"]), ("--shard-size", ["0", "1G"]),
                               ("--device-memory", ["2G"])):
            for value in values:
                with self.subTest(option=option, value=value):
                    done = self.run_fails(USAGE, "merge", recipe, self.folder / "out", f"{option}={value}"
                                          if option.startswith("--") else f"{option}{value}")
                    if value:
                        self.assertIn(f"'{value}' is ", done.stderr)
        self.assertIn("--memory 2048: that is 2048 bytes; write a unit",
                      self.run_fails(USAGE, "plan", recipe, "--memory", "2048").stderr)
        small = self.run_fails(USAGE, "plan", recipe, "--memory", "2kB")
        self.assertIn("--memory 2000 bytes is too small", small.stderr)
        self.assertNotIn("0 threads", small.stdout)
        self.run_ok("plan", recipe, "--seed", "18446744073709551615")

    def test_zero_bytes_in_names_are_refused_and_shown(self):
        recipe = self.write("n.yml", f'merge_method: linear\nmodels:\n- {{model: "{BASE}\\0x"}}\n')
        for command in ("merge", "plan"):
            words = [command, recipe] + ([self.folder / "out"] if command == "merge" else [])
            self.assertIn("\\x00x", self.run_fails(USAGE, *words).stderr)

    def test_messages_are_as_long_as_people_read(self):
        long = "x" * 1_000_000
        model = self.copy(CHAT, "model")
        (model / "tokenizer_config.json").write_text('{"model_max_length": 1' + "0" * 1_000_000 + "}")
        header, data = tensors(BASE / "model.safetensors")
        header[long] = {"dtype": "nonsense", "shape": [1], "data_offsets": [0, 4]}
        other = self.copy(BASE, "other")
        write_tensors(other / "model.safetensors", header, data)
        recipe = self.write("l.yml", f"merge_method: {long}\nmodels: [{{model: {BASE}}}]\n")
        for words in (["plan", self.recipe(model, CHAT, chat_template="chatml")], ["inspect", other],
                      ["plan", recipe], ["plan", self.recipe(long)],
                      ["merge", recipe, long[:100_000]], ["merge", recipe, "x", "--device", long[:100_000]],
                      ["inspect", long[:100_000]], ["plan", self.write("k.yml", f"{long}: 1\n")]):
            with self.subTest(words=[str(w)[:60] for w in words]):
                done = ingot(*words)
                self.assertNotEqual(done.returncode, DONE)
                self.assertLess(len(done.stderr), 10_000)

    def test_messages_are_as_many_as_people_read(self):
        recipe = self.recipe(*[f"missing{i}" for i in range(300)])
        for command in (["plan", recipe], ["merge", recipe, self.folder / "out"]):
            lines = self.run_fails(INPUT, *command).stderr.splitlines()
            self.assertLess(len(lines), 60)
            self.assertIn("and 250 more errors", lines[-1])
        self.assertEqual(len(json.loads(self.run_fails(INPUT, "plan", recipe, "--json").stdout)["problems"]), 300)

    def test_plan_and_merge_have_one_code_for_a_problem(self):
        bad = self.copy(BASE, "bad")
        (bad / "model.safetensors").write_bytes(b"nonsense")
        for recipe in (self.recipe("missing"), self.recipe(bad), self.write("y.yml", "{"),
                       self.write("z.yml", f"merge_method: none\nmodels: [{{model: {BASE}}}]\n"),
                       self.write("w.yml", f"merge_method: linear\nmodels: [{{model: {BASE}}}]\n")):
            with self.subTest(recipe=recipe.name):
                plan = ingot("plan", recipe)
                merge = ingot("merge", recipe, self.folder / "out")
                self.assertNotEqual(plan.returncode, DONE)
                self.assertEqual(plan.returncode, merge.returncode)


class Stacks(Edges):
    @unittest.skipUnless("INGOT_SANITIZE:STRING=\n" in (BUILD / "CMakeCache.txt").read_text(), "sanitizers take more")
    def test_the_limit_on_stacks_limits_no_merge(self):
        # Less than threads take; the first one, which has no more, hands the work to them.
        def small():
            resource.setrlimit(resource.RLIMIT_STACK, (128 << 10, resource.getrlimit(resource.RLIMIT_STACK)[1]))

        adapters = [EXAMPLES / "adapters" / name for name in ("c-lora", "python-lora")]
        for number, words in enumerate((["merge", self.recipe(BASE, CODE)], ["merge", self.write("ties.yml", TIES), "--root", EXAMPLES],
                                        ["extract", BASE, CODE, "--rank", "4"], ["extract", BASE, CODE, "--bytes", "200kB"],
                                        ["adapter", "merge", *adapters, "--type", "svd"], ["bake", BASE, adapters[0]])):
            out = self.folder / f"o{number}"
            with self.subTest(words=words):
                self.run_ok(*words, *(["-o", out] if words[0] != "merge" else [out]), "-j", "4", preexec_fn=small)
                self.run_ok("verify", out, "--root", EXAMPLES, "-j", "4", preexec_fn=small)


class Companions(Edges):
    def test_links_out_of_a_model_are_followed_for_no_file(self):
        (self.folder / "secret").write_text("{}")
        for name in ("merges.txt", "tokenizer.json", "tokenizer_config.json", "generation_config.json",
                     "chat_template.jinja", "config.json", "modeling_own.py", "vocab.json"):
            with self.subTest(name=name):
                model = self.copy(BASE, "model")
                (model / name).unlink(missing_ok=True)
                (model / name).symlink_to(self.folder / "secret")
                done = self.merged(model, CODE, code=INPUT)
                self.assertIn(name, done.stderr)
                self.assertIn("secret", done.stderr)
                shutil.rmtree(model)
        adapter = self.copy(EXAMPLES / "adapters/c-lora", "adapter")
        for name in ("adapter_config.json", "adapter_model.safetensors"):
            with self.subTest(name=name):
                kept = (adapter / name).rename(self.folder / name)
                (adapter / name).symlink_to(kept)
                done = self.run_fails(INPUT, "bake", BASE, adapter, "-o", self.folder / "out")
                self.assertIn("outside", done.stderr)
                (adapter / name).unlink()
                kept.rename(adapter / name)

    def test_blobs_of_the_same_repository_are_followed(self):
        home = self.folder / "models--org--name"
        model = self.copy(BASE, "models--org--name/snapshots/abc")
        (home / "blobs").mkdir()
        for name in ("tokenizer.json", "model.safetensors", "config.json"):
            (model / name).rename(home / "blobs" / name)
            (model / name).symlink_to(f"../../blobs/{name}")
        self.merged(model, CODE)
        self.assertEqual((self.folder / "out/tokenizer.json").read_bytes(),
                         (BASE / "tokenizer.json").read_bytes())

    def test_what_is_no_file_is_never_left_out_in_silence(self):
        def folder(path):
            path.mkdir()

        def device(path):
            server = socket.socket(socket.AF_UNIX)
            self.addCleanup(server.close)
            here = os.getcwd()
            os.chdir(path.parent)  # names of sockets are short
            server.bind(path.name)
            os.chdir(here)

        for make in (lambda path: path.symlink_to("../blobs/gone"), folder, os.mkfifo, device):
            for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"):
                model = self.copy(BASE, "model")
                (model / name).unlink(missing_ok=True)
                make(model / name)
                with self.subTest(name=name):
                    self.assertIn(name, self.merged(model, CODE, code=INPUT).stderr)
                shutil.rmtree(model)

    @unittest.skipIf(os.getuid() == 0, "root reads everything")
    def test_a_companion_that_cannot_be_read_is_an_error(self):
        model = self.copy(BASE, "model")
        (model / "generation_config.json").chmod(0)
        self.assertIn("generation_config.json", self.merged(model, CODE, code=IO).stderr)

    def test_what_stays_behind_is_named(self):
        model = self.copy(BASE, "model")
        for path in ("code/modeling.py", "checkpoint-60/config.json", ".cache/x.json", "figures/a.png"):
            (model / path).parent.mkdir()
            (model / path).write_text("{}")
        (model / os.fsdecode(b"\xff.txt")).write_text("x")
        done = self.merged(model, CODE)
        self.assertIn("model/code was left out", done.stderr)
        self.assertIn("\\xff.txt was left out", done.stderr)
        for name in ("checkpoint-60", ".cache", "figures"):
            self.assertNotIn(name, done.stderr)
        self.run_ok("verify", self.folder / "out")

    def test_tokenizer_and_config_come_from_the_next_model_that_has_them(self):
        model = self.copy(BASE, "model")
        self.merged(BASE, CODE)
        whole = bytes_of(self.folder / "out")
        for name in ("tokenizer.json", "config.json"):
            (model / name).unlink()
        done = self.merged(model, CODE)
        self.assertRegex(done.stderr, "has no tokenizer: the output gets the tokenizer of .*/c,")
        self.assertRegex(done.stderr, "the output gets the config.json of .*/c,")
        self.assertEqual((self.folder / "out/tokenizer.json").read_bytes(),
                         (CODE / "tokenizer.json").read_bytes())
        for name in ("config.json", "model.safetensors"):
            self.assertEqual((self.folder / "out" / name).read_bytes(), whole[name])
        self.run_ok("verify", self.folder / "out")

    def test_a_donor_without_companions_merges_with_every_method(self):
        for source in ("base", "python-bin"):
            for without in (["config.json"], ["tokenizer.json"], ["config.json", "tokenizer.json"]):
                model = self.copy(EXAMPLES / "models" / source, "model")
                for name in without:
                    (model / name).unlink()
                adapter = EXAMPLES / "adapters/c-lora"
                for method, models in (("linear", [model, CODE]), ("ties", [model, CODE]),
                                       ("slerp", [model, CODE]), ("linear", [f"{model}+{adapter}", CODE])):
                    more = {"linear": {}, "ties": {"base_model": str(model)},
                            "slerp": {"base_model": str(model), "parameters": {"t": 0.5}}}[method]
                    with self.subTest(source=source, without=without, method=method, models=models):
                        self.run_ok("plan", self.recipe(*models, method=method, **more))
                        self.merged(*models, method=method, **more)
                with self.subTest(source=source, without=without, command="bake"):
                    self.run_ok("bake", model, adapter, "-o", self.folder / "out", "--force")
                shutil.rmtree(model)

    def test_companions_without_a_byte_are_malformed(self):
        for name in ("config.json", "tokenizer.json", "tokenizer_config.json"):
            for donor in (True, False):
                if not donor and name != "config.json":
                    continue  # nothing of theirs is read
                model = self.copy(BASE, "model")
                (model / name).write_text("")
                with self.subTest(name=name, donor=donor):
                    done = self.merged(*((model, CODE) if donor else (CODE, model)), code=INPUT)
                    self.assertIn(f"model/{name} is empty", done.stderr)
                shutil.rmtree(model)

    def test_a_tokenizer_that_is_no_json_is_named(self):
        for name in ("tokenizer.json", "tokenizer_config.json"):
            model = self.copy(BASE, "model")
            (model / name).write_text("<html>")
            done = self.merged(model, CODE)
            self.assertRegex(done.stderr, f"model/{name} is not valid JSON at byte 1; it was copied")
            shutil.rmtree(model)

    def test_only_keys_that_name_code_are_remote_code(self):
        for text, found in ((r'{"a": "\\ud800 auto_map"}', False), (r'{"a": "\ud800", "n": NaN}', False),
                            (r'{"a": "auto_map", "b": ["trust_remote_code"]}', False),
                            (r'{"trust_remote_code": false}', False), (r'{"a": "\"auto_map\": 1"}', False),
                            (r'{"x": "\ud800", "\u0061uto_map" : {}}', True),
                            (r'{"x": NaN, "trust_remote_code": true}', True)):
            model = self.copy(BASE, "model")
            (model / "processor_config.json").write_text(text)
            with self.subTest(text=text):
                done = self.merged(model, CODE)
                self.assertEqual("remote code" in done.stderr, found, done.stderr)
            shutil.rmtree(model)

    def test_folders_called_as_files_are_errors(self):
        for name in ("generation_config.json", "LICENSE", "foo.py", "special_tokens_map.json"):
            model = self.copy(BASE, "model")
            (model / name).unlink(missing_ok=True)
            (model / name).mkdir()
            with self.subTest(name=name):
                self.assertIn(name, self.merged(model, CODE, code=INPUT).stderr)
            shutil.rmtree(model)

    def test_two_sets_of_weights_in_a_model_are_an_error(self):
        model = self.copy(EXAMPLES / "models/python-sharded", "model")
        shutil.copy(CODE / "model.safetensors", model / "model.safetensors")
        done = self.merged(model, BASE, code=INPUT)
        self.assertIn("model.safetensors.index.json and model.safetensors", done.stderr)
        # Each of them can be named.
        for name in ("model.safetensors", "model.safetensors.index.json"):
            self.run_ok("plan", self.recipe(model / name, BASE))

    def test_a_tokenizer_without_its_vocabulary_is_said(self):
        model = self.copy(CHAT, "model")
        path = model / "tokenizer.json"
        text = json.loads(path.read_text())
        count = len(text["added_tokens"])
        text["model"]["vocab"] = {}
        path.write_text(json.dumps(text))
        done = self.merged(model, BASE, tokenizer_source=str(model))
        self.assertRegex(done.stderr, rf"tokenizer.json gives tokens to {count} of its \d+ ids")
        # Also where it is that of a model whose rows are looked up by it.
        done = self.merged(model, BASE, tokenizer_source=str(BASE))
        self.assertRegex(done.stderr, rf"tokenizer.json gives tokens to {count} of its \d+ ids")

    def test_saved_embeddings_have_rows_for_every_token(self):
        adapter = self.copy(EXAMPLES / "adapters/chat-lora", "adapter")
        header, data = tensors(adapter / "adapter_model.safetensors")
        kept, rest = {}, b""
        for name, info in header.items():
            if name == "__metadata__":
                continue
            begin, end = info["data_offsets"]
            if "embed_tokens" in name or "lm_head" in name:
                end = begin + (end - begin) // info["shape"][0] * 5
                info["shape"][0] = 5
            kept[name] = {**info, "data_offsets": [len(rest), len(rest) + end - begin]}
            rest += data[begin:end]
        write_tensors(adapter / "adapter_model.safetensors", kept, rest)
        done = self.run_fails(INPUT, "bake", BASE, adapter, "-o", self.folder / "out")
        self.assertRegex(done.stderr, "has 5 rows for .* ids up to")


if __name__ == "__main__":
    unittest.main()
