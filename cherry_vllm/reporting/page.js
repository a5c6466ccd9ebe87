const { specs, light, dark } = JSON.parse(document.getElementById("data").textContent);
const scheme = matchMedia("(prefers-color-scheme: dark)");
const views = new Map();

async function draw() {
  const config = scheme.matches ? dark : light;
  for (const [name, spec] of Object.entries(specs)) {
    views.get(name)?.finalize();
    const place = document.querySelector(`[data-figure="${name}"]`);
    const renderer = place.dataset.renderer;
    // With the interpreter (ast), the page's policy need not allow eval.
    const patch = (vega) => ({ ...vega, legends: [] }); // the page has its own legends, which wrap
    const options = { actions: false, ast: true, config, patch, renderer, tooltip: { theme: scheme.matches ? "dark" : "light" } };
    views.set(name, await vegaEmbed(place, spec, options));
  }
  document.documentElement.dataset.drawn = scheme.matches ? "dark" : "light";
}

scheme.addEventListener("change", draw);
draw();
