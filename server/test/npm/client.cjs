// The NATS client of npm, as it is, against one server: everything that a service written with it does. It is run by
// npm_test.go, which restarts the server when this program says so, and reads what it prints: a line for each step.
"use strict";
const assert = require("node:assert/strict");
const readline = require("node:readline");
const { connect, headers, Empty, ErrorCode, Events, StringCodec } = require("nats");

const server = process.argv[2];
const text = StringCodec();
const lines = readline.createInterface({ input: process.stdin })[Symbol.asyncIterator]();

// done says that a step is over.
const done = (step) => console.log(`done ${step}`);

// told waits for the test to say something.
async function told(what) {
  const { value } = await lines.next();
  assert.equal(value, what);
}

// take returns the next n messages of a subscription.
async function take(sub, n) {
  const got = [];
  for await (const m of sub) {
    got.push(m);
    if (got.length === n) break;
  }
  return got;
}

// gather collects what a subscription hears until it ends.
function gather(sub, into) {
  return (async () => {
    for await (const m of sub) into.push(m);
  })();
}

async function queueGroup(nc) {
  const heard = [[], []];
  const subs = heard.map(() => nc.subscribe("$jobs.*", { queue: "workers" }));
  const over = subs.map((s, i) => gather(s, heard[i]));
  await nc.flush();
  for (let i = 0; i < 200; i++) nc.publish(`$jobs.${i % 3}`, text.encode(String(i)));
  await nc.flush();
  await Promise.all(subs.map((s) => s.drain()));
  await Promise.all(over);
  const all = heard.flat().map((m) => Number(text.decode(m.data))).sort((a, b) => a - b);
  assert.deepEqual(all, Array.from({ length: 200 }, (_, i) => i), "each message once in the group");
  assert.ok(heard[0].length > 0 && heard[1].length > 0, "both members have a share");
  done("queue group");
}

async function requests(nc) {
  await assert.rejects(nc.request("$svc.none", Empty, { timeout: 20000 }), (e) => e.code === ErrorCode.NoResponders);
  const service = nc.subscribe("$svc.upper", {
    callback: (_, m) => m.respond(text.encode(text.decode(m.data).toUpperCase()), { headers: m.headers }),
  });
  for (const word of ["one", "two", ""]) {
    const h = headers();
    h.append("X", "a");
    h.append("X", "b");
    const m = await nc.request("$svc.upper", text.encode(word), { timeout: 20000, headers: h });
    assert.equal(text.decode(m.data), word.toUpperCase());
    assert.deepEqual(m.headers.values("X"), ["a", "b"]);
  }
  service.unsubscribe();
  done("request and reply");
}

async function topics(nc) {
  const sub = nc.subscribe("orders.>");
  await nc.flush();
  const h = headers();
  h.set("Key", "anna");
  h.append("X", "one");
  h.append("X", "two");
  nc.publish("orders.eu", text.encode("with headers"), { headers: h });
  nc.publish("orders.us", text.encode("without"));
  await nc.flush(); // what was published is durable
  const got = (await take(sub, 2)).sort((a, b) => (a.subject < b.subject ? -1 : 1));
  assert.deepEqual(got.map((m) => [m.subject, text.decode(m.data)]), [["orders.eu", "with headers"], ["orders.us", "without"]]);
  assert.equal(got[0].headers.get("Key"), "anna");
  assert.deepEqual(got[0].headers.values("X"), ["one", "two"]);
  done("topics and headers");
}

async function acknowledged(nc) {
  const js = nc.jetstream();
  const first = await js.publish("orders.eu", text.encode("acknowledged"), { msgID: "id-1", timeout: 20000 });
  const second = await js.publish("orders.eu", text.encode("acknowledged too"), { timeout: 20000 });
  assert.equal(first.stream, "orders_eu");
  assert.equal(second.seq, first.seq + 1);
  assert.equal(first.duplicate, false);
  await assert.rejects(
    js.publish("orders.eu", Empty, { expect: { lastSequence: 7 }, timeout: 20000 }),
    (e) => e.api_error?.err_code === 10003 && /NOT_SUPPORTED/.test(e.api_error.description),
  );
  await assert.rejects(js.publish("no.such.topic", Empty, { timeout: 20000, retries: 1 }), (e) => e.code === ErrorCode.NoResponders);
  done("JetStream publish");
}

// restart goes on over the server's end: the subscription of before hears what is published after.
async function restart(nc, status) {
  const sub = nc.subscribe("orders.eu");
  await nc.flush();
  console.log("restart");
  await told("restarted");
  for await (const s of status) if (s.type === Events.Reconnect) break;
  nc.publish("orders.eu", text.encode("after the restart"));
  await nc.flush();
  assert.deepEqual((await take(sub, 1)).map((m) => text.decode(m.data)), ["after the restart"]);
  const ack = await nc.jetstream().publish("orders.eu", text.encode("last"), { timeout: 20000 });
  assert.ok(ack.seq >= 4, `sequence ${ack.seq}: what was acknowledged before is there`);
  done("reconnect");
}

async function drain(nc) {
  const heard = [];
  const over = gather(nc.subscribe("$last"), heard);
  await nc.flush();
  for (let i = 0; i < 50; i++) nc.publish("$last", text.encode(String(i)));
  await nc.drain();
  await over;
  assert.equal(heard.length, 50, "what was on its way arrives");
  assert.equal(await nc.closed(), undefined, "it ends without an error");
  done("drain");
}

async function main() {
  const nc = await connect({ servers: server, name: "npm", reconnectTimeWait: 50, maxReconnectAttempts: -1, timeout: 20000 });
  assert.equal(nc.info.headers, true);
  assert.ok(nc.info.trunkline.version, "it is a Trunkline");
  const status = nc.status();
  done("connect");
  await queueGroup(nc);
  await requests(nc);
  await topics(nc);
  await acknowledged(nc);
  await restart(nc, status);
  await drain(nc);
}

main().then(() => process.exit(0), (e) => {
  console.error(e);
  process.exit(1);
});
