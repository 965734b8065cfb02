// The gate: shows the form while a credential is needed, the content once there is one.

import { SignInNeeded } from "./source.js";

/**
 * Calls `enter()` once `knock()` gets an answer; `knock` asks the proxy something that needs the credential.
 * `always`: ask for a credential even before the proxy does.
 */
export function gate(source, { knock, enter, always }) {
  const view = document.querySelector("#sign-in");
  const content = document.querySelector("#content");
  const form = view.querySelector("form");
  const field = view.querySelector("input");
  const problem = view.querySelector(".problem");
  const out = document.querySelector("#sign-out");

  function ask(message) {
    content.hidden = true;
    out.hidden = true;
    view.hidden = false;
    problem.textContent = message;
    field.value = "";
    field.focus();
  }

  async function attempt(message) {
    let answer;
    try {
      answer = await knock();
    } catch (error) {
      if (error instanceof SignInNeeded) {
        const refused = source.credential !== null;
        source.signOut();
        ask(refused ? message : "");
      } else if (view.hidden) {
        document.querySelector("#status").textContent = `no answer: ${error.message}`;
        setTimeout(() => attempt(message), 3000);
      } else {
        problem.textContent = `That did not work: ${error.message}`;
      }
      return;
    }
    view.hidden = true;
    content.hidden = false;
    out.hidden = source.credential === null;
    enter(answer);
  }

  form.addEventListener("submit", (event) => {
    event.preventDefault();
    source.signIn(field.value.trim());
    attempt("That was not accepted.");
  });
  out.addEventListener("click", () => {
    source.signOut();
    location.reload();
  });
  if (always && source.credential === null) ask("");
  else attempt("Please sign in again.");
}
