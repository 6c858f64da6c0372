// One token's odds, where the pointer or the focus is.

import { $, make } from "./make.js";

const percent = (logprob) => {
  const share = Math.exp(logprob) * 100;
  return share >= 99.95 ? "100 %" : share < 0.1 ? "< 0.1 %" : `${share.toFixed(1)} %`;
};

export function tips(root) {
  const tip = $("tip");
  const show = (event) => {
    const odds = event.target.odds;
    if (!odds) return void (tip.hidden = true);
    const rows = odds.top.map(({ token, logprob }) => make("tr", {},
      make("td", { text: JSON.stringify(token).slice(1, -1) + (token === odds.token ? " ◂" : "") }),
      make("td", { text: percent(logprob) })));
    if (!odds.top.some(({ token }) => token === odds.token)) {
      rows.unshift(make("tr", {}, make("td", { text: `${odds.token} ◂` }), make("td", { text: percent(odds.logprob) })));
    }
    tip.replaceChildren(make("table", {}, ...rows));
    tip.hidden = false;
    const at = event.target.getBoundingClientRect(), own = tip.getBoundingClientRect();
    tip.style.left = `${Math.max(8, Math.min(at.left, innerWidth - own.width - 8))}px`;
    tip.style.top = `${at.top > own.height + 12 ? at.top - own.height - 6 : at.bottom + 6}px`;
  };
  root.addEventListener("pointerover", show);
  root.addEventListener("focusin", show);
  root.addEventListener("pointerleave", () => { tip.hidden = true; });
  root.addEventListener("focusout", () => { tip.hidden = true; });
  // One stop for Tab in an answer; the arrows go from token to token.
  root.addEventListener("keydown", (event) => {
    const step = { ArrowRight: "nextElementSibling", ArrowLeft: "previousElementSibling" }[event.key];
    const next = step && event.target.classList.contains("token") && event.target[step];
    if (next) { event.preventDefault(); next.focus(); }
    if (event.key === "Escape") tip.hidden = true;
  });
}
