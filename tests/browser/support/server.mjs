/** The real server: the binary named by FANWIRE_BIN, on a port of its own choice. */
import { spawn } from 'node:child_process';
import { mkdtemp, rm, writeFile } from 'node:fs/promises';
import { createServer } from 'node:net';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { DEADLINE } from './fake-server.mjs';

/**
 * An address for a server that is to be started there again. Its port is below those that the kernel gives to whoever
 * names none, so that nobody gets it while the server is away, not even a client that tries to connect to it.
 */
export async function freeAddress() {
  for (;;) {
    const port = 10_000 + Math.floor(Math.random() * 20_000);
    const probe = createServer();
    const free = await new Promise((resolve) => {
      probe.once('error', () => resolve(false));
      probe.listen(port, '127.0.0.1', () => resolve(true));
    });
    if (!free) continue;
    await new Promise((resolve) => probe.close(resolve));
    return `127.0.0.1:${port}`;
  }
}

export class Server {
  #process;
  #folder;

  /** `config`: a TOML file's text; without it the server is in development mode. */
  static async start({ listen = '127.0.0.1:0', config } = {}) {
    const binary = process.env.FANWIRE_BIN;
    if (!binary) throw new Error('FANWIRE_BIN must name the server: run tests/browser/run');
    const server = new Server();
    server.#folder = await mkdtemp(join(tmpdir(), 'fanwire-chat-'));
    const file = join(server.#folder, 'fanwire.toml');
    if (config) await writeFile(file, config);
    const args = ['serve', '--listen', listen, ...(config ? ['--config', file] : [])];
    const env = { PATH: process.env.PATH, FANWIRE_METRICS_LISTEN: '' };
    server.#process = spawn(binary, args, { cwd: server.#folder, env, stdio: ['ignore', 'pipe', 'pipe'] });
    try {
      server.url = await server.#address();
    } catch (error) {
      await server.stop();
      throw error;
    }
    return server;
  }

  /** The first address with a port that it prints. */
  #address() {
    return new Promise((resolve, reject) => {
      let said = '';
      const late = setTimeout(() => reject(new Error(`no address within ${DEADLINE} ms:\n${said}`)), DEADLINE);
      const onText = (text) => {
        said += text;
        const found = /https?:\/\/127\.0\.0\.1:[1-9]\d*/.exec(said);
        if (!found) return;
        clearTimeout(late);
        resolve(`${found[0]}/`);
      };
      this.#process.on('error', reject);
      for (const stream of [this.#process.stdout, this.#process.stderr]) stream.setEncoding('utf8').on('data', onText);
      this.#process.on('exit', (code) => reject(new Error(`the server ended with ${code}:\n${said}`)));
    });
  }

  async stop(signal = 'SIGKILL') {
    const gone = new Promise((resolve) => this.#process.once('exit', resolve));
    if (this.#process.exitCode === null) {
      this.#process.kill(signal);
      await gone;
    }
    await rm(this.#folder, { recursive: true, force: true });
  }

  /** Publishes as a backend does. */
  async publish(channel, data) {
    const response = await fetch(`${this.url}v1/publish`, {
      method: 'POST',
      headers: { 'content-type': 'application/json' },
      body: JSON.stringify({ channel, data }),
    });
    if (!response.ok) throw new Error(`publish answered ${response.status}: ${await response.text()}`);
  }
}
