// The web worker: Python with microgpt, which answers the page's messages, see playground.py.
//
// {id, request} is answered by {id, answer}. Before that come {stage}, what is being loaded, and {ready}.

async function start() {
  const sources = await (await fetch("sources.json")).json();
  const base = new URL(sources.pyodide, self.location.href);
  postMessage({ stage: "Loading Python …" });
  const { loadPyodide } = await import(new URL("pyodide.mjs", base));
  const pyodide = await loadPyodide();
  postMessage({ stage: "Loading NumPy and microgpt …" });
  const quiet = { messageCallback: () => {} };
  if (sources.wheels) {
    await pyodide.loadPackage(
      sources.wheels.map((name) => new URL(name, base).href),
      quiet,
    );
  }
  if (sources.install) {
    await pyodide.loadPackage("micropip", quiet);
    const micropip = pyodide.pyimport("micropip");
    await micropip.install(sources.install);
  }
  pyodide.FS.writeFile("playground.py", await (await fetch("playground.py")).text());
  const playground = pyodide.pyimport("playground").Playground();
  postMessage({ ready: true });
  return (request) => JSON.parse(playground.handle(JSON.stringify(request)));
}

const started = start();
started.catch((error) =>
  postMessage({
    failed: String(error.message ?? error)
      .trim()
      .split("\n")
      .at(-1),
  }),
);

onmessage = async ({ data: { id, request } }) => {
  const handle = await started;
  try {
    postMessage({ id, answer: handle(request) });
  } catch (error) {
    postMessage({
      id,
      answer: {
        error: String(error.message ?? error)
          .trim()
          .split("\n")
          .at(-1),
      },
    });
  }
};
