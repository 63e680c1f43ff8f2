// html-manager asks MathJax 2's queue for the mathematics in widgets: hand it to MathJax 3.
// Runs after the deferred MathJax and before the widgets are drawn.
document.addEventListener(
  "DOMContentLoaded",
  () => {
    const mathjax = window.MathJax;
    if (mathjax?.startup && !mathjax.Hub) {
      mathjax.Hub = {
        Queue: (job) => mathjax.startup.promise.then(() => mathjax.typesetPromise([job[2]])),
      };
    }
  },
  { capture: true },
);

// The sliders' handles have no accessible name and report an index: give them the label and the value that stand beside them.
function nameSliders() {
  for (const handle of document.querySelectorAll(".noUi-handle")) {
    const box = handle.closest(".widget-inline-hbox");
    const label = box?.querySelector(".widget-label")?.textContent ?? "";
    const value = box?.querySelector(".widget-readout")?.textContent ?? "";
    if (handle.getAttribute("aria-label") !== label) handle.setAttribute("aria-label", label);
    if (handle.getAttribute("aria-valuetext") !== value) handle.setAttribute("aria-valuetext", value);
  }
}

document.addEventListener("DOMContentLoaded", () => {
  new MutationObserver(nameSliders).observe(document.body, { childList: true, subtree: true, characterData: true });
  nameSliders();
});
