package transcript

import (
	"fmt"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/trunkline-mq/trunkline/protocol/errcode"
	"github.com/trunkline-mq/trunkline/protocol/line"
	"github.com/trunkline-mq/trunkline/server/internal/setting"
)

// section is what stands on a page under a heading, to the next one of its rank or above.
func section(t *testing.T, page, heading string) string {
	t.Helper()
	_, text, ok := strings.Cut("\n"+page, "\n"+heading+"\n")
	if !ok {
		t.Fatalf("there is no heading %q", heading)
	}
	rank := strings.Index(heading, " ")
	if next := regexp.MustCompile(fmt.Sprintf(`(?m)^#{1,%d} `, rank)).FindStringIndex(text); next != nil {
		text = text[:next[0]]
	}
	return text
}

// rows are the rows of a section's one table, without its head; each is its cells, separated by " | ".
func rows(t *testing.T, page, heading string) []string {
	t.Helper()
	var found []string
	for _, l := range strings.Split(section(t, page, heading), "\n") {
		if row, ok := strings.CutPrefix(l, "| "); ok {
			found = append(found, strings.TrimSuffix(row, " |"))
		}
	}
	if len(found) < 2 {
		t.Fatalf("%q has no table", heading)
	}
	return found[1:]
}

func TestTheSpecListsEveryErrorCodeAsItIs(t *testing.T) {
	yes := map[bool]string{true: "yes", false: "no"}
	outcome := map[errcode.Outcome]string{errcode.Definite: "definite", errcode.Unknown: "unknown"}
	got := rows(t, read(t, specPage), "## Error codes")
	for i, r := range errcode.Table {
		want := fmt.Sprintf("%s | %s | %s | %s | %s", r.Code, r.Text, yes[r.Retriable], outcome[r.Outcome], yes[r.Closes])
		if i >= len(got) || got[i] != want {
			t.Fatalf("row %d of the table is to be\n| %s |\nin %q", i, want, got[min(i, len(got)-1)])
		}
	}
	if extra := got[len(errcode.Table):]; len(extra) != 0 {
		t.Errorf("the table goes on with %q", extra)
	}
}

// TestTheSpecNamesNoOtherCode finds codes that were misspelt or do not exist.
func TestTheSpecNamesNoOtherCode(t *testing.T) {
	for _, m := range regexp.MustCompile(`-ERR (?:ASYNC )?([A-Z]+_[A-Z_]+) '`).FindAllStringSubmatch(read(t, specPage), -1) {
		if _, ok := errcode.Lookup(errcode.Code(m[1])); !ok {
			t.Errorf("%s is no code", m[1])
		}
	}
}

// verbs are all there are.
func verbs() []line.Verb {
	var all []line.Verb
	for v := line.Connect; v.String() != "?"; v++ {
		if v != line.OK && v != line.Err { // a client may send them; there is nothing to say of it
			all = append(all, v)
		}
	}
	return all
}

func TestTheSpecHasEveryVerbWithItsGrammar(t *testing.T) {
	page := read(t, specPage)
	refused := section(t, page, "## What is not offered")
	for _, v := range verbs() {
		if !v.Offered() {
			if !strings.Contains(refused, "`"+v.String()+"`") {
				t.Errorf("%s is not among what is not offered", v)
			}
			continue
		}
		text := section(t, page, "### "+v.String())
		usage, _, _ := strings.Cut(v.Usage(), ", or ")
		if v == line.Connect {
			usage = "CONNECT {json}" // its usage is an example
		}
		if !strings.Contains(text, "`"+usage+"`") {
			t.Errorf("%s is described without its grammar %s", v, usage)
		}
		if strings.Contains(refused, "`"+v.String()+"`") {
			t.Errorf("%s is offered and stands among what is not", v)
		}
	}
}

func TestTheSpecListsEverySettingWithItsDefault(t *testing.T) {
	def := setting.Defaults()
	want := def.Text()
	var keys []string
	for _, row := range rows(t, read(t, specPage), "## Topic settings") {
		cells := strings.Split(row, " | ")
		key, value := strings.Trim(cells[0], "`"), strings.Trim(cells[1], "`")
		if want[key] != value {
			t.Errorf("%s is %q by default, not %q", key, want[key], value)
		}
		keys = append(keys, key)
	}
	for key := range want {
		if !slices.Contains(keys, key) {
			t.Errorf("setting %s is missing", key)
		}
	}
}

func TestTheSpecsLinksLeadSomewhere(t *testing.T) {
	page := read(t, specPage)
	anchors := map[string]bool{}
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		anchors[strings.ReplaceAll(strings.ToLower(m[1]), " ", "-")] = true
	}
	links := regexp.MustCompile(`\]\(#([^)]*)\)`).FindAllStringSubmatch(page, -1)
	if len(links) == 0 {
		t.Fatal("there are no links")
	}
	for _, m := range links {
		if !anchors[m[1]] {
			t.Errorf("#%s leads nowhere", m[1])
		}
	}
}
