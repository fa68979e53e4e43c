"""The one thing pyproject.toml cannot say: a wheel carries the reports of nbs/reports as vfassoc/experiments/notebooks.

nbs/reports stays the only source. A clone, also an editable install of it, reads the reports from there."""
import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

SOURCE = Path('nbs', 'reports')


class build_py_with_reports(build_py):
    "Copies the reports beside the module that runs them; an older build's copies are removed first."

    def run(self):
        super().run()
        if self.editable_mode: return
        target = Path(self.build_lib, 'vfassoc', 'experiments', 'notebooks')
        shutil.rmtree(target, ignore_errors=True)
        target.mkdir(parents=True)
        for report in self.reports(): shutil.copy2(report, target/report.name)

    def reports(self) -> list[Path]: return sorted(SOURCE.glob('*.ipynb'))

    def get_source_files(self): # what a source distribution needs to build the same wheel
        return [*super().get_source_files(), *map(str, self.reports())]


setup(cmdclass={'build_py': build_py_with_reports})
