"""The modules of the bench import each other in one direction."""

from __future__ import annotations

import pytest


def test_no_module_of_the_bench_imports_itself_by_way_of_others():
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("hybridkit", exclude_type_checking_imports=True, cache_dir=None)
    own = {module for module in graph.modules if module.startswith("hybridkit.bench")}
    for module in own:
        for imported in graph.find_modules_directly_imported_by(module) & own:
            assert graph.find_shortest_chain(imported, module) is None, f"{module} and {imported}"
