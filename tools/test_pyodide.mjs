// Run the tests under Pyodide: CPython compiled to WebAssembly, as it runs in browsers.
//
//     npm install --no-save pyodide
//     ulimit -s 400000 # KiB: tests of deep data need more than the megabyte of node's stack
//     node --stack-size=300000 tools/test_pyodide.mjs WHEEL [ARGUMENT OF PYTEST]...
//
// WHEEL is one of microgpt, pure or compiled for this Pyodide. NumPy and other packages then come from Pyodide's release,
// over the network unless they are beside pyodide.mjs. WHEEL may also be a folder of wheels, with all that is needed, as
// test_pyodide.sh makes it. The exit status is pytest's.
import { readFileSync, readdirSync, statSync } from "node:fs";
import { createRequire } from "node:module";
import { basename, dirname, join, resolve } from "node:path";
import { fileURLToPath, pathToFileURL } from "node:url";

const [wheel, ...options] = process.argv.slice(2);
if (!wheel) {
  console.error("usage: node tools/test_pyodide.mjs WHEEL [ARGUMENT OF PYTEST]...");
  process.exit(2);
}
const installed = createRequire(resolve("package.json")).resolve("pyodide/pyodide.mjs");
const { loadPyodide } = await import(pathToFileURL(installed).href);
const names = ["MICROGPT_REQUIRE_EXTENSIONS", "MICROGPT_BACKEND"].filter((name) => name in process.env);
const pyodide = await loadPyodide({ env: Object.fromEntries(names.map((name) => [name, process.env[name]])) });
pyodide.mountNodeFS("/project", fileURLToPath(new URL("..", import.meta.url)));
if (statSync(wheel).isDirectory()) {
  const extractDir = pyodide.runPython("import site; site.getsitepackages()[0]");
  for (const name of readdirSync(wheel).filter((name) => name.endsWith(".whl"))) {
    pyodide.unpackArchive(new Uint8Array(readFileSync(join(wheel, name))), "wheel", { extractDir });
  }
} else {
  const packages = ["micropip", "numpy", "pytest", "safetensors", "tqdm"];
  const loaded = await pyodide.loadPackage(packages, { messageCallback: () => {} });
  const missing = packages.filter((name) => !loaded.some((found) => found.name === name));
  if (missing.length > 0) {
    console.error(`cannot load ${missing.join(", ")}`);
    process.exit(2);
  }
  pyodide.mountNodeFS("/wheels", dirname(resolve(wheel)));
  pyodide.globals.set("wheels", pyodide.toPy([`emfs:/wheels/${basename(wheel)}`, "hypothesis"]));
  await pyodide.runPythonAsync("import micropip; await micropip.install(wheels)");
}
pyodide.globals.set("options", pyodide.toPy(options));
// Not runPythonAsync, which may run on a small stack of its own.
const status = pyodide.runPython(`
import os

os.chdir("/project/tests")
import pytest

int(pytest.main(["-q", "-p", "no:cacheprovider", *options]))
`);
process.exit(status);
