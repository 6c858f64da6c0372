// One request's waterfall.

import { $, make, ms } from "./make.js";

export function opener(works) {
  const dialog = $("trace");
  $("trace-close").addEventListener("click", () => dialog.close());
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  let shown = "";
  const draw = () => {
    const ride = works.rides.get(shown);
    $("trace-title").textContent = `Request ${shown.slice(0, 8)}`;
    $("trace-about").textContent = ride ? about(ride) : "It is too long ago; millrace trace may still know it.";
    $("bars").tBodies[0].replaceChildren(...(ride ? bars(ride) : []));
  };
  works.changed = (id) => { if (dialog.open && id === shown) draw(); }; // hops are told as they end
  return (id) => {
    shown = id;
    draw();
    dialog.showModal();
  };
}

function about(ride) {
  const parts = [ride.model];
  if (ride.ended) parts.push(`${ride.tokens} tokens`, `finish ${ride.finish}`);
  if (ride.first_ms) parts.push(`first token after ${ms(ride.first_ms)} ms`);
  for (const { engine, reason } of ride.lost) parts.push(`${engine} lost (${reason})`);
  return `${parts.join(" · ")} · trace ${ride.trace}`;
}

function bars(ride) {
  const end = Math.max(ride.ended || 0, ...ride.hops.map((hop) => hop.began + hop.ms / 1000));
  const whole = Math.max(end - ride.began, 0.001);
  const hops = [...ride.hops].sort((a, b) => a.began - b.began);
  return hops.map((hop) => {
    const bar = make("span", { class: `span ${hop.epoch > 2 ? "epoch-more" : hop.epoch === 2 ? "epoch-2" : ""}` });
    bar.style.marginLeft = `${Math.max(0, Math.min(99, (hop.began - ride.began) / whole * 100))}%`;
    bar.style.width = `${Math.max(0.3, Math.min(100, hop.ms / 1000 / whole * 100))}%`;
    const name = hop.epoch > 1 ? `${hop.name}, attempt ${hop.epoch}` : hop.name;
    return make("tr", {}, make("td", { text: name }), make("td", { text: hop.process }),
      make("td", { text: ms(hop.ms) }), make("td", { class: "wide" }, bar));
  });
}
