import { t } from './words.js'

/** The stages of an install and the part of the bar each fills (progress.go). */
export const STAGES = [
  { name: 'partitioning', from: 0, to: 20 },
  { name: 'downloading', from: 20, to: 60 },
  { name: 'installing', from: 60, to: 90 },
  { name: 'configuring', from: 90, to: 100 },
]

/** Their names for people. */
const WORDS = { partitioning: t('partitioning'), downloading: t('downloading'), installing: t('installing'), configuring: t('configuring') }

/** A stage for people: 2/4 downloading. */
export const stageWord = (name) => (stageNumber(name) ? `${stageNumber(name)}/4 ${WORDS[name]}` : name)

/** 1 to 4, or 0 for what is no stage. */
export const stageNumber = (name) => STAGES.findIndex((s) => s.name === name) + 1

/** Figures older than this say so. */
export const STALE_AFTER = 15_000
