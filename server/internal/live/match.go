package live

import (
	"bytes"
	"slices"
	"strings"
)

// node is a place in the trie of patterns, one level a token.
type node struct {
	parent *node
	token  string // under which parent has it
	next   map[string]*node
	star   *node // for *
	rest   *node // for > at the end

	plain  []*Sub
	groups []*group
}

// group is the members of one queue group at one pattern.
type group struct {
	name    string
	members []*Sub
}

// matches is what a look-up finds. Members of a group lie together, whichever of its patterns matched.
type matches struct {
	plain   []*Sub
	members []*Sub
	groups  []span
}

// span is the half-open range of a group's members.
type span struct{ from, to int }

func (m *matches) reset() {
	m.plain, m.members, m.groups = m.plain[:0], m.members[:0], m.groups[:0]
}

// insert puts s at its pattern's node.
func (n *node) insert(s *Sub) {
	rest, more := s.pattern, true
	for more {
		var token string
		token, rest, more = cutToken(rest)
		n = n.child(token, !more)
	}
	s.at = n
	if s.group == "" {
		s.index = len(n.plain)
		n.plain = append(n.plain, s)
		return
	}
	g := n.group(s.group)
	if g == nil {
		g = &group{name: s.group}
		n.groups = append(n.groups, g)
	}
	s.index = len(g.members)
	g.members = append(g.members, s)
}

// child returns the node below n for a token, and makes it where it is missing.
func (n *node) child(token string, final bool) *node {
	place := &n.star
	switch {
	case token == "*":
	case token == ">" && final:
		place = &n.rest
	default:
		if below := n.next[token]; below != nil {
			return below
		}
		if n.next == nil {
			n.next = make(map[string]*node)
		}
		below := &node{parent: n, token: token}
		n.next[token] = below
		return below
	}
	if *place == nil {
		*place = &node{parent: n, token: token}
	}
	return *place
}

func (n *node) group(name string) *group {
	for _, g := range n.groups {
		if g.name == name {
			return g
		}
	}
	return nil
}

// remove takes s out, and the nodes that are of no use without it.
func (n *node) remove(s *Sub) {
	if s.group == "" {
		n.plain = drop(n.plain, s)
	} else {
		g := n.group(s.group)
		if g.members = drop(g.members, s); len(g.members) == 0 {
			n.groups = slices.DeleteFunc(n.groups, func(x *group) bool { return x == g })
		}
	}
	s.at = nil
	for n.parent != nil && n.idle() {
		up := n.parent
		switch n {
		case up.star:
			up.star = nil
		case up.rest:
			up.rest = nil
		default:
			delete(up.next, n.token)
		}
		n = up
	}
}

func (n *node) idle() bool {
	return len(n.plain)+len(n.groups)+len(n.next) == 0 && n.star == nil && n.rest == nil
}

// drop takes s out of list, whose order is of no concern.
func drop(list []*Sub, s *Sub) []*Sub {
	last := len(list) - 1
	list[s.index] = list[last]
	list[s.index].index = s.index
	list[last] = nil
	return list[:last]
}

// match collects what matches a subject, whose tokens are not empty. It visits no node twice.
func (n *node) match(subject []byte, m *matches) {
	if n.rest != nil {
		n.rest.collect(m)
	}
	token, after := subject, []byte(nil)
	if dot := bytes.IndexByte(subject, '.'); dot >= 0 {
		token, after = subject[:dot], subject[dot+1:]
	}
	for _, below := range [2]*node{n.star, n.next[string(token)]} {
		switch {
		case below == nil:
		case after == nil:
			below.collect(m)
		default:
			below.match(after, m)
		}
	}
}

func (n *node) collect(m *matches) {
	m.plain = append(m.plain, n.plain...)
	for _, g := range n.groups {
		m.groups = append(m.groups, span{len(m.members), len(m.members) + len(g.members)})
		m.members = append(m.members, g.members...)
	}
}

// sortGroups makes one of the groups that have the same name at several patterns: together they get a message once.
func (m *matches) sortGroups() {
	if len(m.groups) < 2 {
		return
	}
	slices.SortStableFunc(m.members, func(a, b *Sub) int { return strings.Compare(a.group, b.group) })
	m.groups = m.groups[:0]
	for i, s := range m.members {
		if i == 0 || s.group != m.members[i-1].group {
			m.groups = append(m.groups, span{i, i})
		}
		m.groups[len(m.groups)-1].to = i + 1
	}
}
