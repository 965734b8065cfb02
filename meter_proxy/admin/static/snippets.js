// Code to copy, with this proxy's own address in it.

import { element, setText } from "./dom.js";

const quoted = (text) => `'${text.replaceAll("'", "'\\''")}'`;

export function curl({ baseUrl, model, needsKey }) {
  const body = `{"model": ${JSON.stringify(model)}, "stream": true,\n    "messages": [{"role": "user", "content": "Hi"}]}`;
  const key = needsKey ? [`  -H "Authorization: Bearer $OPENAI_API_KEY" \\`] : [];
  return [`curl -N ${baseUrl}/chat/completions \\`, ...key, `  -H 'Content-Type: application/json' \\`, `  -d ${quoted(body)}`].join("\n");
}

export function python({ baseUrl, model, needsKey }) {
  const key = needsKey ? "" : ', api_key="none"';
  return [
    "from openai import OpenAI",
    "",
    `client = OpenAI(base_url=${JSON.stringify(baseUrl)}${key})`,
    "stream = client.chat.completions.create(",
    `    model=${JSON.stringify(model)},`,
    '    messages=[{"role": "user", "content": "Hi"}],',
    "    stream=True,",
    ")",
    "for chunk in stream:",
    '    print(chunk.choices[0].delta.content or "", end="")',
  ].join("\n");
}

/** A block of code with a button that copies it. */
export function snippet(container, text, name) {
  const code = element("code", { text });
  const block = element("pre", { tabindex: "0", "aria-label": `${name} example` }, code);
  const said = element("span", { class: "note", role: "status" });
  const button = element("button", { type: "button", class: "quiet", text: "Copy", "aria-label": `Copy the ${name} example`, onclick: copy });
  async function copy() {
    const done = await copied(code);
    setText(said, done ? "Copied" : "Selected: press Ctrl+C");
    setTimeout(() => setText(said, ""), 3000);
  }
  container.append(element("div", { class: "snippet" }, block, element("div", { class: "pager" }, said, button)));
}

/** Where there is no clipboard (plain http from another machine), the text is selected. */
async function copied(code) {
  try {
    await navigator.clipboard.writeText(code.textContent);
    return true;
  } catch {
    getSelection().selectAllChildren(code);
    return false;
  }
}
