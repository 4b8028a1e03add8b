// Draws the equations of a page with KaTeX (MIT, docs/katex, version 0.19.1), which only pages with equations load.
{
  const base = document.currentScript.src;
  const equations = document.querySelectorAll("pre.equation");
  if (equations.length) {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("katex/katex.min.css", base);
    const script = document.createElement("script");
    script.src = new URL("katex/katex.min.js", base);
    script.onload = () => {
      for (const plain of equations) {
        const drawn = document.createElement("div");
        drawn.className = "equation";
        katex.render(plain.dataset.tex, drawn, { displayMode: true });
        plain.replaceWith(drawn);
      }
    };
    document.head.append(style, script);
  }
}
