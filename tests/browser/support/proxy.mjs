/** A TCP proxy that can be cut like a cable, or refuse WebSocket as some company networks do. */
import { connect, createServer } from 'node:net';

export class Proxy {
  #server;
  #target;
  #sockets = new Set();
  #open = true;
  /** Swallows what the server says, as a line that works in one direction only. */
  deaf = false;
  #blocksSockets;

  static async start(target, { blocksSockets = false } = {}) {
    const proxy = new Proxy();
    proxy.#target = Number(new URL(target).port);
    proxy.#blocksSockets = blocksSockets;
    proxy.#server = createServer((socket) => proxy.#onConnection(socket));
    await new Promise((resolve) => proxy.#server.listen(0, '127.0.0.1', resolve));
    proxy.url = `http://127.0.0.1:${proxy.#server.address().port}/`;
    return proxy;
  }

  cut() {
    this.#open = false;
    for (const socket of this.#sockets) socket.destroy();
  }

  mend() {
    this.#open = true;
  }

  async stop() {
    this.cut();
    await new Promise((resolve) => this.#server.close(resolve));
  }

  #onConnection(socket) {
    if (!this.#open) return socket.destroy();
    const upstream = connect(this.#target, '127.0.0.1');
    for (const [end, other] of [
      [socket, upstream],
      [upstream, socket],
    ]) {
      this.#sockets.add(end);
      end.on('error', () => {});
      end.on('close', () => {
        this.#sockets.delete(end);
        other.destroy();
      });
    }
    socket.on('data', (bytes) => {
      if (this.#blocksSockets && /^upgrade: websocket/im.test(bytes.toString('latin1'))) return socket.destroy();
      upstream.write(bytes);
    });
    upstream.on('data', (bytes) => this.deaf || socket.write(bytes));
  }
}
