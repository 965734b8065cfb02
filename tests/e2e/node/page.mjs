// The Node examples of the API page that this project started from, with its names; what each prints is JSON.
import OpenAI from 'openai';

const base = process.env.BASE_URL;
const client = new OpenAI({ apiKey: process.env.API_KEY, baseURL: `${base}/v1`, maxRetries: 0 });
const messages = [{ role: 'user', content: '写一首关于春天的诗' }];
const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

const examples = {
  async stream() {
    const stream = await client.chat.completions.create({ model: 'gpt-4', messages, stream: true, max_tokens: 10 });
    let text = '';
    for await (const chunk of stream) {
      text += chunk.choices[0]?.delta?.content || '';
    }
    return { text };
  },

  // "Can a stream be cancelled? Yes: close the connection. Only generated tokens are billed."
  async abort() {
    const controller = new AbortController();
    const response = await fetch(`${base}/v1/llm/chat/completions`, {
      method: 'POST',
      headers: { 'Content-Type': 'application/json', Authorization: `Bearer ${process.env.API_KEY}` },
      body: JSON.stringify({ model: 'auto', messages, stream: true, max_tokens: 500 }),
      signal: controller.signal,
    });
    const reader = response.body.getReader();
    const first = await reader.read();
    controller.abort();
    return { status: response.status, first: new TextDecoder().decode(first.value).slice(0, 6) };
  },

  // max_tokens bounds the output; the header for compression changes nothing for the reader.
  async gzip() {
    const response = await fetch(`${base}/v1/llm/chat/completions`, {
      method: 'POST',
      headers: {
        'Content-Type': 'application/json',
        Authorization: `Bearer ${process.env.API_KEY}`,
        'Accept-Encoding': 'gzip',
      },
      body: JSON.stringify({ model: 'auto-fast', messages, stream: true, max_tokens: 6 }),
    });
    const text = await response.text();
    return { status: response.status, done: text.includes('data: [DONE]') };
  },

  // The page's retry: an error of ours is an error that its loop survives.
  async retry() {
    let attempts = 0;
    async function streamWithRetry(maxRetries = 3) {
      for (let i = 0; i < maxRetries; i++) {
        try {
          attempts += 1;
          return await client.chat.completions.create(
            { model: 'gpt-4', messages, stream: true, max_tokens: 5 },
            { headers: i === 0 ? { 'x-mock-status': '500' } : {} },
          );
        } catch (error) {
          if (i === maxRetries - 1) throw error;
          await sleep(10 * (i + 1));
        }
      }
    }
    let text = '';
    for await (const chunk of await streamWithRetry()) text += chunk.choices[0]?.delta?.content || '';
    return { attempts, text };
  },

  // A broken upstream reaches the `catch` of the page.
  async broken() {
    try {
      const stream = await client.chat.completions.create(
        { model: 'auto', messages, stream: true, max_tokens: 50 },
        { headers: { 'x-mock-fault': 'reset@3' } },
      );
      for await (const chunk of stream) chunk;
      return { caught: false };
    } catch (error) {
      return { caught: true };
    }
  },
};

console.log(JSON.stringify(await examples[process.argv[2]]()));
