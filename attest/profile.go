package attest

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"slices"

	"lethe/attest/eventlog"
	"lethe/dsse"
	"lethe/fault"
)

// Profile says what firmware of one kind of machine may measure. A release cannot
// foretell it, so people write it: from a machine's first log ([Draft]) and the maker's
// digests.
type Profile struct {
	Name string `json:"name"`
	// Clock is how far the TPM's clock may be off, in percent: 20 unless it is given, because the specification
	// allows 15 (TPM 2.0 Library, part 1, 36.2). Software TPMs are right to 1, and so notice a machine
	// that was put back for a shorter time.
	Clock int    `json:"clock_percent,omitempty"`
	Rules []Rule `json:"rules"`
}

// Rule allows one kind of event. An event is explained when a rule for its register,
// its type and its place fits; separators need none, they are always checked.
//
// The type of an event is in no digest. So a rule says what makes the event
// believable, in exactly one of four ways: the digests themselves; texts or variables, whose
// digest is calculated; or "any", which believes nothing, and which registers 0
// and 2 (firmware's and adapters' code) do not take.
type Rule struct {
	PCR  int           `json:"pcr"` // 0 to 15
	Type eventlog.Type `json:"type"`
	Why  string        `json:"why"` // for who reads the profile: what it is and why it may be
	// AfterSeparator is for events after the register's separator, which ends what firmware
	// does by itself. Registers from 8 on have none.
	AfterSeparator bool `json:"after_separator,omitempty"`
	Min            int  `json:"min,omitempty"` // how many there must be
	Max            int  `json:"max"`           // how many there may be, at least 1

	Digests   []dsse.Digest `json:"digests,omitempty"`
	Texts     []string      `json:"texts,omitempty"`     // the event's data, without a final zero byte
	Variables []string      `json:"variables,omitempty"` // names of EFI variables, patterns as in path.Match; of any content
	Any       bool          `json:"any,omitempty"`
}

// Bounds of a profile.
const (
	maxRules = 512
	maxClock = 20
)

// separated are the registers that firmware ends with a separator (TCG PFP 1.05, 3.3.4).
const separated = 8

// ParseProfile reads a profile. Unknown fields are refused: a person wrote it.
func ParseProfile(text []byte) (*Profile, error) {
	bad := func(why string) (*Profile, error) {
		return nil, fault.New(fault.Invalid, "the profile cannot be used: "+why)
	}
	d := json.NewDecoder(bytes.NewReader(text))
	d.DisallowUnknownFields()
	p := &Profile{}
	if err := d.Decode(p); err != nil {
		return bad(err.Error())
	}
	if !serverID.MatchString(p.Name) || len(p.Rules) == 0 || len(p.Rules) > maxRules {
		return bad(fmt.Sprintf("it wants a name of small letters, and 1 to %d rules", maxRules))
	}
	if p.Clock < 0 || p.Clock > maxClock {
		return bad(fmt.Sprintf("clock_percent wants 1 to %d", maxClock))
	}
	for i, r := range p.Rules {
		if why := r.wrong(); why != "" {
			return bad(fmt.Sprintf("rule %d: %s", i+1, why))
		}
	}
	return p, nil
}

func (r Rule) wrong() string {
	ways := 0
	for _, given := range []bool{len(r.Digests) > 0, len(r.Texts) > 0, len(r.Variables) > 0, r.Any} {
		if given {
			ways++
		}
	}
	switch {
	case r.PCR < 0 || r.PCR >= PCRs:
		return fmt.Sprintf("register %d, want 0 to %d", r.PCR, PCRs-1)
	case r.Why == "":
		return "it does not say why"
	case r.Type == eventlog.Separator:
		return "separators are always checked"
	case r.Max < 1 || r.Min < 0 || r.Min > r.Max:
		return "max must be at least 1, and min between 0 and max"
	case ways != 1:
		return "want one of digests, texts, variables and any"
	case r.Any && (r.PCR == 0 || r.PCR == 2) && r.Type != eventlog.NoAction:
		return fmt.Sprintf("register %d holds code: name its digests", r.PCR)
	case r.AfterSeparator && r.PCR >= separated:
		return fmt.Sprintf("register %d has no separator", r.PCR)
	}
	for _, pattern := range r.Variables {
		if _, err := path.Match(pattern, ""); err != nil {
			return "variable " + pattern + " is not a pattern"
		}
	}
	return ""
}

// about says whether the rule is about such an event at that place.
func (r Rule) about(e eventlog.Event, after bool) bool {
	return r.PCR == e.Index && r.Type == e.Type && r.AfterSeparator == after
}

// fits says whether the rule allows what was measured.
func (r Rule) fits(e eventlog.Event) bool {
	switch {
	case r.Any:
		return true
	case len(r.Digests) > 0:
		return slices.Contains(r.Digests, e.Digest)
	case len(r.Texts) > 0:
		// EDK II measures action strings without their final zero; some firmware writes it into the log.
		return believed(e) && slices.Contains(r.Texts, string(bytes.TrimSuffix(e.Data, []byte{0})))
	}
	v, err := eventlog.ParseVariable(e.Data)
	// Boot variables' digest is of their content only (PFP 1.05, 10.4.1, EV_EFI_VARIABLE_BOOT).
	if err != nil || !e.Hashed() && (e.Type != eventlog.VariableBoot || sha256.Sum256(v.Data) != e.Digest) {
		return false
	}
	return slices.ContainsFunc(r.Variables, func(pattern string) bool {
		match, _ := path.Match(pattern, v.Name) // the pattern was checked
		return match
	})
}

// believed says whether the data is what was measured, or what was measured and a final zero. Events
// that extend nothing are believed as far as a rule allows them at all.
func believed(e eventlog.Event) bool {
	return e.Type == eventlog.NoAction || e.Hashed() || sha256.Sum256(bytes.TrimSuffix(e.Data, []byte{0})) == e.Digest
}

// way says in which way a rule believes; see [Rule].
func (r Rule) way() string {
	switch {
	case r.Any:
		return "any"
	case r.Texts != nil:
		return "texts"
	case r.Variables != nil:
		return "variables"
	}
	return "digests"
}

// separatorData is what a separator holds when firmware had no error (PFP 1.05, 10.4.1).
var separatorData = make([]byte, 4)

// check judges every event of a log that leads to the quoted registers.
func (p *Profile) check(l *eventlog.Log) error {
	var after [PCRs]bool
	count := make([]int, len(p.Rules))
	for n, e := range l.Events {
		where := fmt.Sprintf("event %d, PCR %d, %v", n+1, e.Index, e.Type)
		if e.Index >= PCRs {
			return Refuse(UnknownEvent, where)
		}
		if e.Type == eventlog.Separator {
			if e.Index >= separated || after[e.Index] || !bytes.Equal(e.Data, separatorData) || !e.Hashed() {
				return Refuse(Separators, where)
			}
			after[e.Index] = true
			continue
		}
		about, fit := false, -1
		for i, r := range p.Rules {
			if !r.about(e, after[e.Index]) {
				continue
			}
			about = true
			if r.fits(e) {
				fit = i
				break
			}
		}
		switch {
		case !about:
			return Refuse(UnknownEvent, where)
		case fit < 0:
			return Refuse(RefusedEvent, where+", "+hex.EncodeToString(e.Digest[:]))
		}
		if count[fit]++; count[fit] > p.Rules[fit].Max {
			return Refuse(TooManyEvents, fmt.Sprintf("%s, rule %d", where, fit+1))
		}
	}
	for index := range separated {
		if !after[index] {
			return Refuse(Separators, fmt.Sprintf("PCR %d has none", index))
		}
	}
	for i, r := range p.Rules {
		if count[i] < r.Min {
			return Refuse(MissingEvent, fmt.Sprintf("PCR %d, %v, rule %d", r.PCR, r.Type, i+1))
		}
	}
	return nil
}

// secureBoot reads from the log whether firmware checked signatures: the variable
// SecureBoot was measured once, into PCR 7, before the separator, with its true content.
func secureBoot(l *eventlog.Log) error {
	on, seen := false, 0
	for _, e := range l.Events {
		if e.Index != 7 {
			continue
		}
		if e.Type == eventlog.Separator {
			break
		}
		v, err := eventlog.ParseVariable(e.Data)
		if err == nil && v.Name == "SecureBoot" {
			seen++
			on = e.Hashed() && e.Type == eventlog.VariableDriver && len(v.Data) == 1 && v.Data[0] == 1
		}
	}
	if !on || seen != 1 {
		return Refuse(SecureBootOff, "")
	}
	return nil
}

// Draft returns rules that explain every event of a log, for a person to look through:
// digests where code is measured, names where variables and texts are, and any elsewhere.
func Draft(name string, l *eventlog.Log) *Profile {
	p := &Profile{Name: name}
	var after [eventlog.Registers]bool
	for _, e := range l.Events {
		if e.Type == eventlog.Separator {
			after[e.Index] = true
			continue
		}
		r := Rule{PCR: e.Index, Type: e.Type, Why: "was in the first log", AfterSeparator: after[e.Index], Max: 1}
		v, err := eventlog.ParseVariable(e.Data)
		switch text := string(bytes.TrimSuffix(e.Data, []byte{0})); {
		case err == nil:
			r.Variables = []string{v.Name}
		case e.Type == eventlog.EFIAction || e.Type == eventlog.Action:
			r.Texts = []string{text}
		case e.Index == 0 && e.Type != eventlog.NoAction || e.Index == 2:
			r.Digests = []dsse.Digest{e.Digest}
		default:
			r.Any = true
		}
		if !r.fits(e) { // firmware that measures something else than it writes into the log
			r.Texts, r.Variables, r.Digests = nil, nil, []dsse.Digest{e.Digest}
		}
		if i := slices.IndexFunc(p.Rules, func(o Rule) bool { return o.about(e, r.AfterSeparator) && o.way() == r.way() }); i >= 0 {
			p.Rules[i].Max++
			p.Rules[i].Digests = append(p.Rules[i].Digests, r.Digests...)
			p.Rules[i].Texts = append(p.Rules[i].Texts, r.Texts...)
			p.Rules[i].Variables = append(p.Rules[i].Variables, r.Variables...)
			continue
		}
		p.Rules = append(p.Rules, r)
	}
	return p
}
