// Asking the proxy, with the credential that the reader gave, and asking again.

const PATIENCE_MS = 10_000;

/** The credential is missing or wrong. */
export class SignInNeeded extends Error {}

/** This proxy does not have that. */
export class NotAvailable extends Error {}

export class Source {
  /** `name`: under which the credential is kept in the tab's session storage, and nowhere else. */
  constructor(name) {
    this.name = name;
    this.credential = sessionStorage.getItem(name);
  }

  signIn(credential) {
    this.credential = credential;
    sessionStorage.setItem(this.name, credential);
  }

  signOut() {
    this.credential = null;
    sessionStorage.removeItem(this.name);
  }

  /** The JSON at `path`; parameters that are empty are left out. */
  async json(path, parameters = {}) {
    return (await this.fetch(path, parameters)).json();
  }

  async fetch(path, parameters = {}) {
    const query = new URLSearchParams(Object.entries(parameters).filter(([, value]) => value !== undefined && value !== ""));
    const headers = this.credential ? { Authorization: `Bearer ${this.credential}` } : {};
    const url = query.size ? `${path}?${query}` : path;
    const response = await fetch(url, { headers, cache: "no-store", signal: AbortSignal.timeout(PATIENCE_MS) });
    if (response.ok) return response;
    const said = (await response.json().catch(() => ({})))?.error?.message ?? `status ${response.status}`;
    if (response.status === 401) throw new SignInNeeded(said);
    if (response.status === 404 || response.status === 400) throw new NotAvailable(said);
    throw new Error(said);
  }
}

/**
 * Runs `work` now and every `seconds`, one at a time, while the page is looked at.
 * Returns a function that runs it at once. `failed(error)` is told of what went wrong; `worked()` of the rest.
 */
export function every(seconds, work, { failed, worked }) {
  let timer = 0;
  let running = null;
  async function run() {
    clearTimeout(timer);
    try {
      await work();
      worked();
    } catch (error) {
      failed(error);
      if (error instanceof SignInNeeded) return;
    }
    if (!document.hidden) timer = setTimeout(start, seconds * 1000);
  }
  function start() {
    running = (running ?? Promise.resolve()).then(run);
    return running;
  }
  document.addEventListener("visibilitychange", () => {
    clearTimeout(timer);
    if (!document.hidden) start();
  });
  start();
  return start;
}
