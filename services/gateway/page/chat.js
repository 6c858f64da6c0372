// The conversation: a question in, an answer streamed, an error said plainly.

import { call, events, key, Refused } from "./net.js";
import { $, make, ms } from "./make.js";
import { tips } from "./tip.js";

const number = (id) => $(id).value === "" ? undefined : Number($(id).value);

export class Chat {
  constructor({ trace, answering }) {
    this.turns = [];
    this.trace = trace; // opens a request's trace, by the last 32 digits of its id
    this.answering = answering; // told the request that is being answered, and "" when none is
    this.going = null;
    const ask = $("ask");
    $("composer").addEventListener("submit", (event) => { event.preventDefault(); this.send(ask.value); });
    ask.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && !event.shiftKey && !event.isComposing) { event.preventDefault(); this.send(ask.value); }
    });
    ask.addEventListener("input", () => this.grow());
    $("stop").addEventListener("click", () => this.going?.abort());
    $("fresh").addEventListener("click", () => this.fresh());
    $("ideas").addEventListener("click", (event) => { if (event.target.tagName === "BUTTON") this.send(event.target.textContent); });
    $("key").value = key.get();
    $("key").addEventListener("change", () => { key.set($("key").value.trim()); this.onkey?.(); });
    tips($("talk"));
  }

  grow() {
    const ask = $("ask");
    ask.style.height = "auto";
    ask.style.height = `${ask.scrollHeight + 2}px`;
  }

  fresh() {
    this.going?.abort();
    this.turns = [];
    $("talk").replaceChildren($("welcome"));
    $("welcome").hidden = false;
    $("ask").focus();
  }

  async send(text) {
    text = text.trim();
    if (!text || this.going) return;
    $("welcome").hidden = true;
    $("ask").value = "";
    this.grow();
    this.turns.push({ role: "user", content: text });
    $("talk").append(make("div", { class: "turn user", text }));
    const turn = make("div", { class: "turn assistant going" });
    const words = make("span", { class: "words" });
    turn.append(words);
    $("talk").append(turn);
    this.going = new AbortController();
    $("send").hidden = true;
    $("stop").hidden = false;
    const began = performance.now();
    const answer = { text: "", first: 0, request: "", usage: null, finish: "" };
    try {
      await this.stream(answer, words, began);
      this.turns.push({ role: "assistant", content: answer.text });
    } catch (error) {
      if (error.name === "AbortError") answer.finish = "stopped by you";
      else turn.append(fault(error));
      if (answer.text) this.turns.push({ role: "assistant", content: answer.text });
      else this.turns.pop();
    }
    turn.classList.remove("going");
    this.after(turn, answer, performance.now() - began);
    this.going = null;
    this.answering("");
    $("send").hidden = false;
    $("stop").hidden = true;
    this.follow(true);
    $("ask").focus();
  }

  async stream(answer, words, began) {
    const odds = $("odds").checked;
    const response = await call("/v1/chat/completions", {
      signal: this.going.signal,
      body: {
        model: $("model").value, messages: this.turns, stream: true, stream_options: { include_usage: true },
        temperature: number("temperature"), max_tokens: number("most"), seed: number("seed"),
        ...(odds ? { logprobs: true, top_logprobs: 5 } : {}),
      },
    });
    for await (const [, data] of events(response)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error) throw new Refused(chunk.error.message, { code: chunk.error.code });
      if (chunk.id && !answer.request) {
        answer.request = chunk.id.split("-").pop();
        this.answering(answer.request);
      }
      if (chunk.usage) answer.usage = chunk.usage;
      const choice = chunk.choices?.[0];
      if (!choice) continue;
      if (choice.finish_reason) answer.finish = choice.finish_reason;
      const text = choice.delta?.content || choice.delta?.reasoning_content || "";
      if (!text) continue;
      answer.first ||= performance.now() - began;
      answer.text += choice.delta?.content || "";
      const told = choice.logprobs?.content || [];
      const span = make("span", told.length ? { class: "token", text, tabindex: words.childElementCount ? "-1" : "0" } : { text });
      if (told.length) {
        const last = told[told.length - 1];
        span.odds = { token: last.token, logprob: last.logprob, top: last.top_logprobs || [] };
        if (this.moved) { span.classList.add("moved"); this.moved = false; }
      }
      words.append(span);
      this.follow();
    }
    throw new Refused("The stream broke off.");
  }

  after(turn, answer, took) {
    const notes = [];
    if (answer.usage) {
      const count = answer.usage.completion_tokens;
      notes.push(`${count} tokens`);
      if (answer.first) notes.push(`first after ${ms(answer.first)} ms`);
      if (count > 1 && took > answer.first) notes.push(`${Math.round((count - 1) / (took - answer.first) * 1000)} tokens/s`);
      const cached = answer.usage.prompt_tokens_details?.cached_tokens;
      if (cached) notes.push(`${cached} of ${answer.usage.prompt_tokens} prompt tokens from the cache`);
    }
    if (answer.finish && answer.finish !== "stop") notes.push(answer.finish === "length" ? "cut at the most tokens" : answer.finish);
    const line = make("div", { class: "after" }, ...notes.map((text) => make("span", { text })));
    if (answer.request && this.trace) {
      const open = make("button", { type: "button", text: "open trace" });
      open.addEventListener("click", () => this.trace(answer.request));
      line.append(open);
    }
    turn.append(line);
  }

  // Keeps the end in sight, unless the reader has gone up to read.
  follow(force = false) {
    const talk = $("talk");
    const near = talk.scrollHeight - talk.scrollTop - talk.clientHeight < 120;
    if (near || force) talk.scrollTop = talk.scrollHeight;
  }
}

function fault(error) {
  const head = {
    401: "This service asks for an API key.", 429: "Too many requests just now.", 503: "Not ready to answer.",
  }[error.status] || (error.code === "context_length_exceeded" ? "The conversation is too long for this model." : "That did not work.");
  const said = [error.message || String(error)];
  if (error.status === 401) said.push("Put it under Settings, below.");
  if (error.wait) said.push(`Try again in ${error.wait} s.`);
  return make("div", { class: "error", role: "alert" }, make("b", { text: head }), said.join(" "));
}
