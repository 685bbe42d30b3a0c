# SPDX-License-Identifier: Apache-2.0
"""The words of the command line: commands, flags, help texts.

They are apart from what the commands do, so that ``lbctl version``, ``--help`` and a shell's Tab import
nothing of that: here, only the standard library, :mod:`lb.config` and :mod:`lb.package_files` are imported. A
command names the function of ``lb.cli`` that does it, such as ``status.run``.
"""
