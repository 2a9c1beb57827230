// The package `ws` as a publish server: as much of Fanwire's protocol as the load generator speaks, and no more.
// No history, no limits, no authentication, frames as long as Fanwire's. Prints its address, ends with its parent.

import { WebSocketServer } from "ws";

const server = new WebSocketServer({ host: "127.0.0.1", port: 0, backlog: 4096, perMessageDeflate: false });
const channels = new Map();

function subscribers(channel) {
  let set = channels.get(channel);
  if (!set) channels.set(channel, (set = new Set()));
  return set;
}

server.on("connection", (socket) => {
  const subscribed = [];
  socket.on("message", (bytes) => {
    const command = JSON.parse(bytes);
    if (command.type === "subscribe") {
      subscribers(command.channel).add(socket);
      subscribed.push(command.channel);
      socket.send(JSON.stringify({ type: "subscribed", id: command.id, channel: command.channel }));
    } else if (command.type === "publish") {
      const { channel, data } = command;
      const id = "01JD0000000000000000000000";
      const message = JSON.stringify({ type: "message", channel, event: "message", data, id, time: Date.now() });
      const frame = Buffer.from(message);
      for (const subscriber of subscribers(channel)) subscriber.send(frame, { binary: false });
      if (command.id !== undefined) {
        socket.send(JSON.stringify({ type: "published", id: command.id, channel, publication: id }));
      }
    }
  });
  socket.on("close", () => subscribed.forEach((channel) => subscribers(channel).delete(socket)));
});

server.on("listening", () => console.log(`ws://127.0.0.1:${server.address().port}/ ${process.pid}`));
