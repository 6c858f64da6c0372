// Elements, made of text and never of markup.

export const $ = (id) => document.getElementById(id);

export function make(tag, { text, ...more } = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(more)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  element.append(...children);
  return element;
}

export const ms = (value) => value < 10 ? value.toFixed(1) : Math.round(value).toString();
