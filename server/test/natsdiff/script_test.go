package natsdiff

import (
	"fmt"
	"math/rand/v2"
	"strings"
)

// connections is how many clients a script has.
const connections = 4

// commands is how many commands a script has at least.
const commands = 60

// step is what one client sends.
type step struct {
	conn int
	text string
}

// script is a run of core NATS: how each client introduces itself, and what they send in turn.
type script struct {
	connect [connections]string
	steps   []step
	groups  map[string]string // "connection sid" of the members of queue groups, with the group's name
}

// author writes a script. It never lets chance decide what is compared: members of a group are counted together and
// have no quota.
type author struct {
	rnd    *rand.Rand
	sids   [connections]int
	groups map[string]string
	member [connections]map[int]bool
	plain  [connections]bool // reads no headers, and so may send none
	hello  [connections]string
}

func newScript(seed uint64) script {
	a := &author{rnd: rand.New(rand.NewPCG(seed, 2)), groups: map[string]string{}}
	s := script{groups: a.groups}
	for i := range connections {
		a.member[i] = map[int]bool{}
		echo, headers, noResponders, pedantic := a.rnd.IntN(3) > 0, a.rnd.IntN(4) > 0, a.rnd.IntN(2) == 0, a.rnd.IntN(3) == 0
		verbose := a.rnd.IntN(4) == 0
		a.plain[i] = !headers
		s.connect[i] = fmt.Sprintf(`CONNECT {"verbose":%v,"pedantic":%v,"echo":%v,"headers":%v,"no_responders":%v,"lang":"go","version":"1.0.0","protocol":1}`,
			verbose, pedantic, echo, headers, noResponders && headers)
	}
	a.hello = s.connect
	for len(s.steps) < commands {
		conn := a.rnd.IntN(connections)
		s.steps = append(s.steps, step{conn, a.command(conn)})
	}
	return s
}

func (a *author) pick(words ...string) string { return words[a.rnd.IntN(len(words))] }

func (a *author) subject() string {
	return a.pick("foo", "foo.bar", "foo.bar.baz", "bar", "bar.foo", "Foo", "foo.$x", "_INBOX.a.b", "x-y.z_1", "nobody.is.there")
}

func (a *author) pattern() string {
	return a.pick(a.subject(), a.subject(), "foo.*", "*.bar", "foo.>", ">", "*", "*.*", "foo.*.baz", "*.foo.>", "_INBOX.a.*", "foo*", "foo.b>")
}

// command writes the next command of a client.
func (a *author) command(conn int) string {
	switch k := a.rnd.IntN(20); {
	case k < 5:
		return a.subscribe(conn)
	case k < 7:
		return a.unsubscribe(conn)
	case k < 8:
		return "PING\r\n"
	case k < 9:
		return a.odd(conn)
	case k < 12 && !a.plain[conn]:
		return a.withHeaders()
	}
	body := strings.Repeat(a.pick("x", "yz", "\r\n", ""), a.rnd.IntN(20))
	return fmt.Sprintf("%s %s%s%d\r\n%s\r\n", a.pick("PUB", "pub", "Pub"), a.subject(), a.reply(), len(body), body)
}

// reply writes a reply-to, or nothing, with the blanks around it.
func (a *author) reply() string {
	if a.rnd.IntN(2) == 0 {
		return a.pick(" ", "\t", "  ")
	}
	return " " + a.pick("_INBOX.a.b", "_INBOX.a.c", "bar", "foo.bar", "nobody.there") + " "
}

func (a *author) withHeaders() string {
	if a.rnd.IntN(8) == 0 { // a block of no bytes, as some libraries send
		return fmt.Sprintf("HPUB %s%s0 2\r\nhi\r\n", a.subject(), a.reply())
	}
	header := "NATS/1.0\r\n"
	for range a.rnd.IntN(3) {
		header += a.pick("A: b\r\n", "Key: k\r\n", "Nats-Msg-Id: 7\r\n", "X:\r\n", "Timestamp: then\r\n")
	}
	header += "\r\n"
	body := strings.Repeat("b", a.rnd.IntN(5))
	return fmt.Sprintf("HPUB %s%s%d %d\r\n%s%s\r\n", a.subject(), a.reply(), len(header), len(header)+len(body), header, body)
}

func (a *author) subscribe(conn int) string {
	a.sids[conn]++
	sid := a.sids[conn]
	if a.rnd.IntN(10) == 0 && sid > 1 { // the same once more
		sid = 1 + a.rnd.IntN(sid-1)
		if !a.member[conn][sid] {
			return fmt.Sprintf("SUB %s %d\r\n", a.pattern(), sid)
		}
		sid = a.sids[conn]
	}
	if a.rnd.IntN(3) == 0 {
		group := a.pick("g", "h")
		a.groups[fmt.Sprintf("%d %d", conn, sid)] = group
		a.member[conn][sid] = true
		return fmt.Sprintf("SUB %s %s %d\r\n", a.pattern(), group, sid)
	}
	return fmt.Sprintf("SUB %s %d\r\n", a.pattern(), sid)
}

func (a *author) unsubscribe(conn int) string {
	sid := 1 + a.rnd.IntN(a.sids[conn]+1)
	if a.rnd.IntN(2) == 0 || a.member[conn][sid] {
		return fmt.Sprintf("UNSUB %d\r\n", sid)
	}
	return fmt.Sprintf("UNSUB %d %d\r\n", sid, a.rnd.IntN(6))
}

// odd writes what is refused, or is nobody's, on a connection that goes on.
func (a *author) odd(conn int) string {
	switch a.rnd.IntN(6) {
	case 0: // again: its subscriptions are gone
		return a.hello[conn] + "\r\n"
	case 1, 2:
		a.sids[conn]++
		return fmt.Sprintf("SUB %s %d\r\n", a.pick("foo..bar", ".foo", "foo.", "foo.>.bar", "."), a.sids[conn])
	}
	return fmt.Sprintf("PUB %s 2\r\nhi\r\n", a.pick("foo..bar", ".foo", "foo.*", "foo.>", "*", ">"))
}
