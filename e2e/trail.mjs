// The trail, as `keylease audit --json` prints it on stdin, knows each loan of the run and who took it.
import assert from 'node:assert/strict'
import { readFileSync } from 'node:fs'

const { entries } = JSON.parse(readFileSync(0))
const count = event => {
  const by = {}
  for (const { event: e, identity: { name, proof } = {} } of entries) {
    if (e === event) by[`${name}, ${proof}`] = (by[`${name}, ${proof}`] ?? 0) + 1
  }
  return by
}

// On stdio the holder is who the client says it is, over HTTP who the token says.
const loans = {
  'ts-sdk-v1, declared': 1, 'ts-sdk-v1, token': 2,
  'ts-sdk-v2, declared': 3, 'ts-sdk-v2, token': 5,
  'inspector-cli, declared': 2, 'inspector, token': 3,
  'codex, declared': 1, 'codex, token': 2
}
console.log(entries.length, 'entries')
assert.deepEqual(count('lease.created'), loans)
assert.deepEqual(count('lease.released'), loans)
