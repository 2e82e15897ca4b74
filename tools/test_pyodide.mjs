// Run the tests with the pure wheel under Pyodide: CPython compiled to WebAssembly, as it runs in browsers.
//
//     npm install --no-save pyodide
//     ulimit -s 65500 # KiB: a test of deeply nested JSON needs more than the megabyte of node's stack
//     node --stack-size=30000 tools/test_pyodide.mjs dist/microgpt_fast-0.1.0-py3-none-any.whl [ARGUMENT OF PYTEST]...
//
// NumPy and other packages come from Pyodide's release, over the network unless they are beside pyodide.mjs. The exit
// status is pytest's.
import { basename, dirname, resolve } from "node:path";
import { fileURLToPath } from "node:url";
import { loadPyodide } from "pyodide";

const [wheel, ...options] = process.argv.slice(2);
if (!wheel) {
  console.error("usage: node tools/test_pyodide.mjs WHEEL [ARGUMENT OF PYTEST]...");
  process.exit(2);
}
const packages = ["micropip", "numpy", "pytest", "safetensors", "tqdm"];
const pyodide = await loadPyodide();
const loaded = await pyodide.loadPackage(packages, { messageCallback: () => {} });
const missing = packages.filter((name) => !loaded.some((found) => found.name === name));
if (missing.length > 0) {
  console.error(`cannot load ${missing.join(", ")}`);
  process.exit(2);
}
pyodide.mountNodeFS("/project", fileURLToPath(new URL("..", import.meta.url)));
pyodide.mountNodeFS("/wheels", dirname(resolve(wheel)));
pyodide.globals.set("wheel", `emfs:/wheels/${basename(wheel)}`);
pyodide.globals.set("options", pyodide.toPy(options));
const status = await pyodide.runPythonAsync(`
import os

import micropip

await micropip.install([wheel, "hypothesis"])
os.chdir("/project/tests")
import pytest

int(pytest.main(["-q", "-p", "no:cacheprovider", *options]))
`);
process.exit(status);
