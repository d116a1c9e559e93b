"use strict";
(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const byId = (id) => document.getElementById(id);

  // The front. Until here the page shows the drawn one; plotly takes its place and follows the page's colours.
  const theme = () => {
    const style = getComputedStyle(document.documentElement);
    const [ink, rule, card] = ["--ink", "--rule", "--card"].map((name) => style.getPropertyValue(name).trim());
    return {
      "font.color": ink, "paper_bgcolor": "rgba(0,0,0,0)", "plot_bgcolor": "rgba(0,0,0,0)",
      "xaxis.gridcolor": rule, "yaxis.gridcolor": rule, "xaxis.linecolor": rule, "yaxis.linecolor": rule,
      "xaxis.zeroline": false, "yaxis.zeroline": false,
      "modebar.bgcolor": "rgba(0,0,0,0)", "modebar.color": rule, "modebar.activecolor": ink,
      "hoverlabel.bgcolor": card, "hoverlabel.font.color": ink, "hoverlabel.bordercolor": rule,
    };
  };
  const place = byId("front");
  if (place && window.Plotly) {
    place.replaceChildren();
    const family = getComputedStyle(document.body).fontFamily;
    const layout = { ...data.front.layout, font: { family, size: 13 }, autosize: true };
    Plotly.newPlot(place, data.front.data, layout, {
      responsive: true, displaylogo: false, modeBarButtons: [["toImage", "zoom2d", "pan2d", "resetScale2d"]],
    })
      .then(() => Plotly.relayout(place, theme()));
    matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => Plotly.relayout(place, theme()));
  }

  // The sample browser. Everything is set as text, never as HTML.
  const { labels, prompts, answers } = data.samples;
  const chooseLabel = byId("choose-label"), choosePrompt = byId("choose-prompt");
  if (!chooseLabel || prompts.length === 0) return;
  const make = (tag, className, text) => {
    const element = document.createElement(tag);
    if (className) element.className = className;
    if (text !== undefined) element.textContent = text;
    return element;
  };
  const minus = (text) => text.replace("-", "\u2212");
  const name = (answer) => answer.vector === null ? "No direction"
    : answer.angle_deg !== null ? `${minus(String(answer.angle_deg))}°`
    : `(${answer.vector.map((w) => minus(w.toFixed(2))).join(", ")})`;
  const card = (answer) => {
    const column = make("article", "answer");
    column.append(make("h3", "", name(answer)));
    const weights = answer.vector === null ? "asked as it is"
      : data.objectives.map((objective, k) => `${objective} ${minus(answer.vector[k].toFixed(2))}`).join(", ");
    column.append(make("p", "weights", weights));
    const list = make("dl");
    for (const objective of data.objectives) {
      const reward = answer.rewards[objective];
      list.append(make("dt", "", objective), make("dd", "", reward.toFixed(1)));
      const bar = make("div", "bar"), filled = make("span");
      bar.setAttribute("aria-hidden", "true");
      filled.style.width = `${Math.max(0, Math.min(100, reward))}%`;
      bar.append(filled);
      list.append(bar);
    }
    list.append(make("dt", "", "tokens"), make("dd", "", `${answer.length}${answer.finished ? "" : " (cut)"}`));
    column.append(list, make("p", "text", answer.text));
    return column;
  };
  const show = () => {
    const prompt = prompts[choosePrompt.selectedIndex];
    const columns = (answers[labels[chooseLabel.selectedIndex]] || {})[prompt.id] || [];
    byId("prompt").textContent = prompt.text;
    byId("answers").replaceChildren(...columns.map(card));
    if (columns.length === 0) byId("answers").append(make("p", "soft", "No answer to this prompt here."));
    byId("position").textContent = `Prompt ${choosePrompt.selectedIndex + 1} of ${prompts.length}, ${columns.length} ${columns.length === 1 ? "answer" : "answers"}`;
    byId("previous").disabled = choosePrompt.selectedIndex === 0;
    byId("next").disabled = choosePrompt.selectedIndex === prompts.length - 1;
  };
  const move = (by) => { choosePrompt.selectedIndex += by; show(); };
  labels.forEach((label) => chooseLabel.append(make("option", "", label)));
  prompts.forEach((prompt, i) => {
    const text = prompt.text.replace(/\s+/g, " ").trim();
    choosePrompt.append(make("option", "", `${i + 1}. ${text.length > 80 ? text.slice(0, 79) + "…" : text}`));
  });
  chooseLabel.selectedIndex = labels.length - 1;
  chooseLabel.addEventListener("change", show);
  choosePrompt.addEventListener("change", show);
  byId("previous").addEventListener("click", () => move(-1));
  byId("next").addEventListener("click", () => move(1));
  show();
})();
