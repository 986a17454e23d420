// Give the figures the colours of a light or a dark page.
const paint = dark => document.querySelectorAll(".js-plotly-plot").forEach(figure => {
  const change = {"font.color": dark ? "#e6e8eb" : "#1d2229"};
  for (const axis of Object.keys(figure.layout).filter(key => /^[xy]axis/.test(key)))
    change[axis + ".gridcolor"] = dark ? "#3a414b" : "#e3e6ea";
  Plotly.relayout(figure, change);
});
