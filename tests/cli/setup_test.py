"""tools/setup installs what is missing and nothing else. apt and dpkg are played by scripts."""

import os
import subprocess
import unittest

from program import SOURCE, Case

DPKG = """#!/bin/sh
for name; do :; done
case " $PRESENT " in *" $name "*) printf 'installed ' ;; *) exit 1 ;; esac
"""
APT = """#!/bin/sh
echo "$@" >> "$LOG"
case "$*" in *update*) touch "$LISTS" ;; *install*) [ -e "$LISTS" ] ;; esac
"""
SUDO = """#!/bin/sh
echo sudo >> "$LOG"
exec "$@"
"""


class Setup(Case):
    def setUp(self):
        super().setUp()
        for name, text in (("dpkg-query", DPKG), ("apt-get", APT), ("sudo", SUDO)):
            path = self.write(name, text)
            path.chmod(0o755)
        self.log = self.folder / "log"
        self.lists = self.folder / "lists"

    def run_setup(self, *words, present=""):
        return subprocess.run([SOURCE / "tools" / "setup", *words], capture_output=True, text=True,
                              env={**os.environ, "PATH": f"{self.folder}:{os.environ['PATH']}",
                                   "PRESENT": present, "LOG": str(self.log), "LISTS": str(self.lists)})

    def asked(self):
        lines = self.log.read_text().splitlines() if self.log.exists() else []
        return [line for line in lines if line != "sudo"]

    def needed(self, words):
        done = self.run_setup("--no-install", words)
        self.assertEqual(done.returncode, 0)
        return done.stderr.split("missing packages: ")[1].split()

    def test_nothing_is_asked_for_when_all_is_there(self):
        done = self.run_setup("all", present=" ".join(self.needed("all")))
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, "", ""))
        self.assertEqual(self.asked(), [])

    def test_only_what_is_missing_is_installed(self):
        self.lists.touch()
        packages = self.needed("build")
        done = self.run_setup("build", present=" ".join(p for p in packages if p != "ccache"))
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([line.split()[-2:] for line in self.asked()],
                         [["--no-install-recommends", "ccache"]])

    def test_stale_lists_are_updated_once(self):
        done = self.run_setup("build")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual([next(w for w in line.split() if not w.startswith("-")) for line in self.asked()],
                         ["install", "update", "install"])

    def test_no_install_touches_nothing(self):
        self.assertIn("g++", self.needed("build"))
        self.assertEqual(self.asked(), [])

    def test_building_needs_no_test_or_check_tools(self):
        build = set(self.needed("build"))
        self.assertLess(build, set(self.needed("test")))
        self.assertLess(set(self.needed("test")), set(self.needed("all")))
        self.assertFalse(build & {"libgtest-dev", "clang-14", "python3"})

    def test_other_words_are_refused(self):
        self.assertEqual(self.run_setup("everything").returncode, 2)
        self.assertEqual(self.run_setup().returncode, 2)


if __name__ == "__main__":
    unittest.main()
