package line

// Verb is a verb of the protocol, client to server.
type Verb uint8

// The verbs. Unknown is a line whose first word is none of them.
const (
	Unknown Verb = iota
	Connect
	Ping
	Pong
	Pub
	HPub
	Sub
	Unsub
	OK
	Err
	Info
	Help
	Send
	Get
	Quit
	Topic
	Metadata
	Produce
	Fetch
	Offsets
	Plugin
	// The verbs below are known and refused as NOT_SUPPORTED.
	ProducerID
	Join
	Accept
	Leave
	Commit
	Committed
	Group
	Cluster
	verbCount
)

// shape says how a verb's control line is taken apart and what follows it.
type shape uint8

const (
	fields  shape = iota // blank-separated fields
	rest                 // everything after the verb is one argument
	text                 // SEND: an address, one blank, data to the line end
	payload              // fields, the last one the payload's size
	headers              // fields, the last two the header's and the total size
	maybe                // FETCH: a payload follows where the only field is a number
)

var verbs = [verbCount]struct {
	name     string
	shape    shape
	min, max int // fields before the sizes, of the verbs that carry a payload
	usage    string
	offered  bool
}{
	Unknown:    {name: "?"},
	Connect:    {"CONNECT", rest, 0, 0, `CONNECT {"verbose":true}`, true},
	Ping:       {"PING", fields, 0, 0, "PING", true},
	Pong:       {"PONG", fields, 0, 0, "PONG", true},
	Pub:        {"PUB", payload, 1, 2, "PUB <address> [reply-to] <#bytes>", true},
	HPub:       {"HPUB", headers, 1, 2, "HPUB <address> [reply-to] <#header> <#total>", true},
	Sub:        {"SUB", fields, 0, 0, "SUB <address> [group] <sid>", true},
	Unsub:      {"UNSUB", fields, 0, 0, "UNSUB <sid> [max]", true},
	OK:         {"+OK", rest, 0, 0, "+OK", true},
	Err:        {"-ERR", rest, 0, 0, "-ERR", true},
	Info:       {"INFO", rest, 0, 0, "INFO {json}", true},
	Help:       {"HELP", fields, 0, 0, "HELP [verb]", true},
	Send:       {"SEND", text, 0, 0, "SEND <address> <text>", true},
	Get:        {"GET", fields, 0, 0, "GET <address> [count]", true},
	Quit:       {"QUIT", fields, 0, 0, "QUIT", true},
	Topic:      {"TOPIC", fields, 0, 0, "TOPIC CREATE|LIST|INFO|ALTER|TRIM|DELETE …", true},
	Metadata:   {"METADATA", fields, 0, 0, "METADATA [topic…]", true},
	Produce:    {"PRODUCE", payload, 1, 4, "PRODUCE <topic>/<partition> [acks=0|1|all] [timeout=<time>] [plan=<version>] <#bytes>", true},
	Fetch:      {"FETCH", maybe, 0, 0, "FETCH <topic>/<partition>@<offset>… [max=<size>] [wait=<time>] [min=<size>], or FETCH <#bytes> and JSON", true},
	Offsets:    {"OFFSETS", fields, 0, 0, "OFFSETS <topic>[/<partition>][@<position>]", true},
	Plugin:     {"PLUGIN", fields, 0, 0, "PLUGIN LIST|INFO|RELOAD …", true},
	ProducerID: {name: "PRODUCERID"},
	Join:       {name: "JOIN"},
	Accept:     {name: "ACCEPT"},
	Leave:      {name: "LEAVE"},
	Commit:     {name: "COMMIT"},
	Committed:  {name: "COMMITTED"},
	Group:      {name: "GROUP"},
	Cluster:    {name: "CLUSTER"},
}

// String is the verb as it stands on the wire, in capitals.
func (v Verb) String() string {
	if v >= verbCount {
		return "?"
	}
	return verbs[v].name
}

// Usage is the verb's grammar on one line, empty where the verb is not offered.
func (v Verb) Usage() string {
	if v >= verbCount {
		return ""
	}
	return verbs[v].usage
}

// Offered reports whether this version serves the verb.
func (v Verb) Offered() bool { return v < verbCount && verbs[v].offered }

// Lookup finds a verb by its name in any case, Unknown where there is none.
func Lookup(word []byte) Verb {
	for v := Connect; v < verbCount; v++ {
		if equalFold(word, verbs[v].name) {
			return v
		}
	}
	return Unknown
}

// lookupFast is Lookup with the verbs of the hot path first.
func lookupFast(word []byte) Verb {
	switch {
	case equalFold(word, "PUB"):
		return Pub
	case equalFold(word, "HPUB"):
		return HPub
	case equalFold(word, "SEND"):
		return Send
	case equalFold(word, "PING"):
		return Ping
	}
	return Lookup(word)
}

// equalFold compares b with an upper-case ASCII word.
func equalFold(b []byte, upper string) bool {
	if len(b) != len(upper) {
		return false
	}
	for i := range b {
		c := b[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		if c != upper[i] {
			return false
		}
	}
	return true
}

// Nearest names the offered verb that word was probably meant to be, Unknown where none is close: it begins with the
// verb or is at most two typing errors away from it.
func Nearest(word []byte) Verb {
	best, cost := Unknown, 3
	for v := Connect; v < verbCount; v++ {
		name := verbs[v].name
		if !verbs[v].offered || v == OK || v == Err {
			continue
		}
		if len(word) > len(name) && len(name) > 2 && equalFold(word[:len(name)], name) {
			return v
		}
		if len(word) > len(name)+2 || len(name) > len(word)+2 {
			continue
		}
		if d := distance(word, name); d < cost && d < len(name) {
			best, cost = v, d
		}
	}
	return best
}

// distance is the number of insertions, deletions, changes and swaps of neighbours between word and an upper-case
// name, both at most a few bytes long.
func distance(word []byte, name string) int {
	var rows [3][16]int
	if len(name)+1 > len(rows[0]) || len(word) > 16 {
		return 16
	}
	upper := func(i int) byte {
		c := word[i]
		if 'a' <= c && c <= 'z' {
			c -= 'a' - 'A'
		}
		return c
	}
	before, last, row := &rows[0], &rows[1], &rows[2]
	for j := range len(name) + 1 {
		last[j] = j
	}
	for i := range len(word) {
		row[0] = i + 1
		for j := range len(name) {
			swap := 1
			if upper(i) == name[j] {
				swap = 0
			}
			row[j+1] = min(last[j]+swap, last[j+1]+1, row[j]+1)
			if i > 0 && j > 0 && upper(i) == name[j-1] && upper(i-1) == name[j] {
				row[j+1] = min(row[j+1], before[j-1]+1)
			}
		}
		before, last, row = last, row, before
	}
	return last[len(name)]
}
