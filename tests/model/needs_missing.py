"""Imports a module that does not exist."""

import importlib

importlib.import_module("no_such_dependency_anywhere")
